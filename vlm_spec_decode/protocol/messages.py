"""The wire messages, version 4 (docs/protocol.md): what is sent, not how or when.

A message on the wire is one version byte and one msgpack array whose first element is the tag. Fields
may be added at the end with a default; a receiver ignores fields that it does not know. Token ids
travel packed (two bytes each for vocabularies up to 65,536, else three, little-endian) because they are
nearly all of the traffic. `answer` and `epoch` in a reply name what caused it.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

VERSION = 4
"""The version byte of this package's own messages."""

OLDEST_VERSION = 1
"""Versions from this one on are understood, and answered in kind. Version 2 added `Welcome.image_limits` and
`Open.draft_step_us`, version 3 `Open.chat`, version 4 `Open.deadline_ms` and `WireCommit.floor`."""

CHAT_VERSION = 3
"""The first version whose clouds read `Open.chat`; an older one would answer another question."""

LOAD_VERSION = 4
"""The first version whose ends tell each other of deadlines and of the load."""

UNTOLD = 255
"""`WireCommit.floor` of a cloud that welcomes every node."""

MAX_SENT_IMAGE_BYTES = 4 * 1024 * 1024
MAX_WIRE_TOKENS = 4096
MAX_WIRE_NODES = 256
"""Nodes of one draft."""

HELLO_FIRST = "hello_first"
"""Reason of a Refused: the cloud does not know this robot, which must send Hello and Open again."""

OTHER_VERSION = "version"
"""Reason of a Refused: the cloud does not understand messages of this version."""

TOO_MANY_ANSWERS = "too_many_answers"
"""Reason of a Refused: the robot has as many answers open as the cloud allows one robot."""


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages."""


class AnswerMessage(Message, frozen=True, array_like=True):
    """Base of the messages about one answer: its number, and the epoch of the connection, come first."""

    answer: int
    epoch: int


class Hello(Message, frozen=True, array_like=True, tag=1):
    """Edge to cloud, first: what the edge's token ids mean. Answered by Welcome or Refused."""

    software: str
    tokenizer_digest: str
    prompt_digest: str
    grammar_digest: str
    vocab_size: int


class Welcome(Message, frozen=True, array_like=True, tag=2):
    """Cloud to edge: the models agree; identity of the target and the cloud's limits.

    `image_limits` is the largest picture that the target can use, as `codec.limits_to_wire` has it; None if
    the cloud does not say, as one of version 1. It is of any type here, so that nonsense in it is named, not
    a Welcome that never comes.
    """

    model_id: str
    revision: str
    num_layers: int
    exit_layers: tuple[int, ...]
    image_window_bytes: int
    max_image_bytes: int
    strategies: tuple[str, ...]
    image_limits: Any = None


class Refused(AnswerMessage, frozen=True, array_like=True, tag=3):
    """Cloud to edge: the request is refused, and why. `answer` 0 refuses the handshake."""

    reason: str
    detail: str


class WireDraft(AnswerMessage, frozen=True, array_like=True, tag=7):
    """Edge to cloud: nodes of the speculation tree; see `core.types.DraftMessage`.

    `tokens` are packed. No `parents` mean a chain below the committed prefix; else one packed
    distance `node - parent` per node, 0 for the prefix. No `weights` mean all 0.
    """

    base: int
    first_node: int
    tokens: bytes
    parents: bytes | None = None
    weights: bytes | None = None
    q: bytes | None = None


WireChat: TypeAlias = tuple[tuple[tuple[str, str, bool], ...], str, str]
"""A chat: its turns (role, text, whether the picture stands before it), its form and the form's pattern."""


class Open(AnswerMessage, frozen=True, array_like=True, tag=4):
    """Edge to cloud: one answer begins, or begins again under a higher epoch after a loss.

    `committed` are packed tokens that the edge already has; they replace what the cloud has of the answer.
    `patience_ms` is how long the edge waits for a verdict before it gives up, 0 if that is not known.
    `draft` holds the first nodes, so that the pass over the prompt verifies them. `draft_step_us` is what a
    draft step takes at the edge, in microseconds, 0 if that is not known or nobody drafts.
    `image_digest` is empty without an image. `params_digest` guards against reading a field differently.
    With a `chat` that is what is asked (`core.types.Chat`), in place of the instruction. `deadline_ms` is for
    how long from now on the answer is of use, 0 if nobody has said so.
    """

    strategy: str
    instruction: str
    history: tuple[str, ...]
    stamp_s: float
    frame_id: str
    image_digest: bytes
    image_bytes: int
    image_width: int
    image_height: int
    temperature: float
    top_k: int
    top_p: float
    max_tokens: int
    stop_ids: tuple[int, ...]
    seed: int
    rule: str
    params_digest: str
    committed: bytes = b""
    residual: str = "sparse"
    objective: str = "latency"
    patience_ms: int = 0
    draft: WireDraft | None = None
    draft_step_us: int = 0
    chat: WireChat | None = None
    deadline_ms: int = 0


class ImageChunk(AnswerMessage, frozen=True, array_like=True, tag=5):
    """Edge to cloud: bytes `offset`… of the image that the open answer named."""

    offset: int
    data: bytes


class ImageCredit(AnswerMessage, frozen=True, array_like=True, tag=6):
    """Cloud to edge: `received` bytes of the image are here in order; at most a window more may follow."""

    received: int


class WireEarly(AnswerMessage, frozen=True, array_like=True, tag=8):
    """Cloud to edge: an early-exit verdict; `confidence` in 255ths."""

    pass_id: int
    exit_layer: int
    node: int
    next_token: int
    confidence: int


class WireCommit(AnswerMessage, frozen=True, array_like=True, tag=9):
    """Cloud to edge: committed tokens; see `core.types.Commit`. `compute_us` in microseconds.

    `floor` is a node's weight byte (`decoding.tree.quantise`): the next pass verifies what is as likely.
    """

    start: int
    tokens: bytes
    node: int
    pass_id: int
    finished: bool
    compute_us: int
    residual: bytes | None = None
    floor: int = UNTOLD


class WireCorrection(AnswerMessage, frozen=True, array_like=True, tag=10):
    """Edge to cloud: the token drawn from the residual; rule `rejection` with the residual on the edge.

    A negative `token` -n asks for n tail samples instead (`core.types.MoreSamples`).
    """

    position: int
    token: int


class Close(AnswerMessage, frozen=True, array_like=True, tag=11):
    """Edge to cloud: the answer has ended or is abandoned; its KV cache may be freed. No reply."""


class Ping(Message, frozen=True, array_like=True, tag=12):
    """Edge to cloud: a sign of life. The edge has `committed` tokens; `recover` asks for the missing ones."""

    stamp_us: int
    answer: int
    epoch: int
    committed: int
    recover: bool


class Pong(Message, frozen=True, array_like=True, tag=13):
    """Cloud to edge: echo of a Ping's stamp. `known` is false if the cloud has no such session."""

    stamp_us: int
    answer: int
    epoch: int
    known: bool


class Busy(AnswerMessage, frozen=True, array_like=True, tag=14):
    """Cloud to edge: no room now, and why. Try again after `retry_after_ms`, or at another cloud.

    `answer` 0 answers a Hello.
    """

    reason: str
    retry_after_ms: int


AnyMessage: TypeAlias = (
    Hello
    | Welcome
    | Refused
    | Open
    | ImageChunk
    | ImageCredit
    | WireDraft
    | WireEarly
    | WireCommit
    | WireCorrection
    | Close
    | Ping
    | Pong
    | Busy
)
