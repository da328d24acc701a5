"""Data that crosses module boundaries: observations, drafts, verdicts, commits. Results are in `core.trace`.

Independent of models, networks and robots. A token sequence always holds the *answer's* tokens; the
prompt belongs to the owner of a model. Node numbers identify nodes of the speculation tree: the edge
counts them 1, 2, … once per answer; 0 is the committed prefix itself.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import TypeAlias


def is_text(text: str) -> bool:
    """Return whether `text` can be written as UTF-8.

    A byte of a command line that is not UTF-8 becomes half a surrogate pair in Python, and JSON and YAML can
    name one: tokenizers, ROS and files then raise.
    """
    return not text_problem(text)


def text_problem(text: str) -> str:
    """Return what is wrong with `text` and where, "" if it can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        what = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"U+{code:04X}"
        return f"{what} at character {error.start + 1} is not UTF-8"
    return ""


Tokens: TypeAlias = tuple[int, ...]

MAX_MESSAGE_BYTES = 64 * 1024
"""Of one message on the wire: the codec and the sockets hold to it."""

MAX_INSTRUCTION_CHARS = 2000
"""Of an instruction, at the edge that sends it and in the cloud that reads it."""

MAX_OPEN_ANSWERS = 4
"""Of one robot at a time, at its engine, and in the cloud by default."""

FUTURE_TOLERANCE_S = 0.5
"""A stamp further ahead than this is of another clock, so it gives no age."""

RULES = ("coupled", "rejection")
"""Verification rules that both ends implement."""

RESIDUALS = ("sparse", "full", "cloud", "top_k")
"""Where `rejection` draws a correction, and from what.

On the edge from the target's likeliest ids with exact tail samples (`sparse`) or from as much of p as one
message holds (`full`, DSSD); in the cloud, from a q cut to a few ids before it is sampled (`cloud`); on the
edge from PicoSpec's plain top-K (`top_k`), the only one that is not lossless.
"""

Support: TypeAlias = tuple[tuple[int, int], ...]
"""Ids and weights of a draft's q in units of 2**-16, the drafted id first (`decoding.verify`)."""


OBJECTIVES = ("latency", "balanced", "cost")
"""What decides whether the cloud waits for a draft: time alone, both, or target passes."""


@dataclass(frozen=True, slots=True)
class Image:
    """A JPEG and its size in pixels."""

    jpeg: bytes
    width: int
    height: int

    @property
    def digest(self) -> bytes:
        """SHA-256 of the JPEG bytes [32 bytes]; the name under which the cloud caches the image."""
        return hashlib.sha256(self.jpeg).digest()


ROLES = ("system", "user", "assistant")
"""Who says a turn of a chat."""

FORMS = ("free", "regex", "json_schema")
"""What an answer in a chat may be held to: nothing, a regular expression, or a JSON schema."""

MAX_CHAT_TURNS, MAX_CHAT_BYTES = 64, 48 * 1024
"""Of one chat: its turns, and the UTF-8 of them and of its form. An Open carries both in one message."""


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One turn of a chat; with `sees` the picture stands before its text."""

    role: str
    text: str
    sees: bool = False


@dataclass(frozen=True, slots=True)
class Chat:
    """A question that need not be an instruction to a robot: all turns, and the form of the answer.

    `form` is one of `FORMS`, `pattern` its expression or schema. It takes the place of the language that
    both ends were started with. Raises ValueError for turns or a form that no chat has.
    """

    turns: tuple[ChatTurn, ...]
    form: str = "free"
    pattern: str = ""

    def __post_init__(self) -> None:
        if not self.turns or self.turns[-1].role != "user" or len(self.turns) > MAX_CHAT_TURNS:
            raise ValueError(f"a chat of 1 to {MAX_CHAT_TURNS} turns, the last one the user's, is wanted")
        if any(turn.role not in ROLES for turn in self.turns):
            raise ValueError(f"a turn of nobody known; known: {', '.join(ROLES)}")
        if any(turn.sees and turn.role != "user" for turn in self.turns) or self.num_seen > 1:
            raise ValueError("a chat shows one picture at most, in a turn of the user's")
        if self.form not in FORMS or bool(self.pattern) != (self.form != "free"):
            raise ValueError(
                f"form {self.form[:40]!r}; known: {', '.join(FORMS)}, all but the first with a pattern"
            )
        size = sum(len(text.encode()) for text in (self.pattern, *(turn.text for turn in self.turns)))
        if size > MAX_CHAT_BYTES:
            raise ValueError(f"a chat of {size} bytes; {MAX_CHAT_BYTES} are allowed")

    @property
    def num_seen(self) -> int:
        """How many of its turns show the picture."""
        return sum(turn.sees for turn in self.turns)


@dataclass(frozen=True, slots=True)
class Observation:
    """What one answer is about. Sent once per answer, never per round.

    `history` holds the actions already carried out for this instruction, in order, as text of the
    action language. `image` is None for a language-only pair. With a `chat` the models are asked that, and
    `instruction` only names the question.
    """

    image: Image | None
    instruction: str
    history: tuple[str, ...] = ()
    stamp_s: float = 0.0
    frame_id: str = ""
    chat: Chat | None = None


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen from logits; must be equal on both ends.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 switch the cuts off. `seed` keys the shared
    Gumbel noise of the `coupled` rule and every draw of the `rejection` rule, which draws its corrections as
    `residual` says.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int = 96
    stop_ids: Tokens = ()
    seed: int = 0
    rule: str = "coupled"
    residual: str = "sparse"

    def __post_init__(self) -> None:
        if (
            not 0 <= self.temperature < 1e6
            or self.top_k < 0
            or not 0 < self.top_p <= 1
            or self.max_tokens < 1
        ):
            raise ValueError(f"sampling parameters out of range: {self}")
        if self.rule not in RULES:
            raise ValueError(f"unknown rule {self.rule!r}; known: {', '.join(RULES)}")
        if self.residual not in RESIDUALS:
            raise ValueError(f"unknown residual {self.residual!r}; known: {', '.join(RESIDUALS)}")

    @property
    def lossless(self) -> bool:
        """Whether answers have exactly the target's law."""
        return self.rule != "rejection" or self.residual != "top_k" or self.temperature == 0

    def ends(self, length: int, token: int) -> bool:
        """Return whether an answer of `length` tokens, `token` the last, is complete."""
        return token in self.stop_ids or length >= self.max_tokens

    @property
    def digest(self) -> str:
        """Short hash of all fields, compared when a session opens."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Language:
    """The language of answers: `digest` identifies it in the handshake.

    `pattern` is the regular expression that constrains answers at both ends; empty: no constraint.
    """

    digest: str
    pattern: str = ""


@dataclass(frozen=True, slots=True)
class DraftMessage:
    """Nodes `first_node`, `first_node + 1`, … of the speculation tree, in topological order.

    `parents[i]` is 0 for the committed prefix of length `base`, else the number of an earlier node,
    also of an earlier draft. `weights[i]` is the node's quantised log-probability (see
    `decoding.tree.quantise`). `q` says under the `rejection` rule what each token was drawn from: its own
    weight alone, or all of a short q; empty means that nothing was drawn at random.
    """

    answer: int
    epoch: int
    base: int
    first_node: int
    tokens: Tokens
    parents: Tokens
    weights: Tokens = ()
    q: tuple[Support, ...] = ()


@dataclass(frozen=True, slots=True)
class EarlyExitVerdict:
    """A prediction of the verdict, sent while the pass runs through the layers (2505.21594, eq. 5).

    `node` is the deepest node that this exit accepts, `next_token` the token after it and
    `confidence` the exit's probability of that token, 0 to 1.
    """

    answer: int
    epoch: int
    pass_id: int
    exit_layer: int
    node: int
    next_token: int
    confidence: float


@dataclass(frozen=True, slots=True)
class SparseTarget:
    """The target's p where it has rejected a draft, for an edge that holds q (2603.19133, made exact).

    `ids` and `parts` are the likeliest tokens in units of 2**-40, `outside` is the mass of all others and
    `tail` holds i.i.d. samples (id, part) of those, so that the edge can draw from what it does not have.
    `is_cut` marks PicoSpec's plain top-K, which has no tail and loses the mass outside.
    """

    ids: Tokens
    parts: Tokens
    outside: int = 0
    tail: tuple[tuple[int, int], ...] = ()
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class Commit:
    """Verified tokens `start`, `start + 1`, … of the answer. Idempotent by `start`.

    `node` is the deepest accepted node, 0 if none was, from which both ends re-root. `compute_s` is
    the pass's time on the target. `finished` closes the answer. With a `residual` the edge draws the token
    after `tokens`; the cloud waits for its `Correction`. `floor` is how likely a node must be for the next
    pass to verify it, as the cloud is loaded now; 0 if it has not said so.
    """

    answer: int
    epoch: int
    start: int
    tokens: Tokens
    node: int
    pass_id: int
    finished: bool
    compute_s: float = 0.0
    residual: SparseTarget | None = None
    floor: float = 0.0


@dataclass(frozen=True, slots=True)
class Correction:
    """The token that the edge drew from the residual; only when the residual lives on the edge.

    Idempotent by `position`.
    """

    answer: int
    epoch: int
    position: int
    token: int


@dataclass(frozen=True, slots=True)
class MoreSamples:
    """A request for `count` more tail samples for the token at `position`: the last ones were used up."""

    answer: int
    epoch: int
    position: int
    count: int


Event: TypeAlias = EarlyExitVerdict | Commit

Hint: TypeAlias = DraftMessage | Correction | MoreSamples
"""What the edge sends while an answer is open."""


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    """Everything that opens one answer at a verifier. `committed` resumes a session after a loss.

    `objective` is one of `OBJECTIVES`: what the cloud may spend on being fast. `draft` comes with the
    question, so that the pass that reads the prompt verifies it. `draft_step_s` is what a draft
    step takes at the edge, in seconds, 0 if that is not known: the cloud weighs its own drafting against it.
    `deadline_s` is within how many seconds of the question the answer is of use, 0 if nobody has said so.
    """

    answer: int
    observation: Observation
    params: SamplingParams
    strategy: str
    committed: Tokens = ()
    epoch: int = 0
    objective: str = "latency"
    draft: DraftMessage | None = None
    draft_step_s: float = 0.0
    deadline_s: float = 0.0


Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""

USUAL_WIDTH_PX = 448
"""Width of pictures whose use is not known: a 1080p JPEG of 150 kB becomes one of some 15 kB."""

MIN_WIDTH_PX = 224
"""No picture is reduced further for the sake of a slow link: smaller ones show too little."""

MAX_SIDE_PX, MAX_BOXES = 16_384, 64
"""The largest side and number of boxes that limits may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """The largest picture of which a model's image processor keeps the detail; pictures keep their shape.

    `max_pixels` bounds width times height. A picture in one of the boxes `inside` is as large as can be used,
    the best box for its shape counts: longest edges and grids of tiles. One that covers the box `cover` is
    squashed or cropped to it. Several kinds bound together. None of them: the use is not known, and pictures
    are `USUAL_WIDTH_PX` wide. Raises ValueError for sides, areas or numbers of boxes that no picture has.
    """

    max_pixels: int = 0
    inside: tuple[Size, ...] = ()
    cover: Size | None = None

    def __post_init__(self) -> None:
        boxes = self.inside if self.cover is None else (*self.inside, self.cover)
        if len(self.inside) > MAX_BOXES or not 0 <= self.max_pixels <= MAX_SIDE_PX**2:
            raise ValueError(f"{len(self.inside)} boxes and {self.max_pixels} pixels")
        if not all(1 <= side <= MAX_SIDE_PX for box in boxes for side in box):
            raise ValueError(f"a box of {boxes}")

    @property
    def is_known(self) -> bool:
        """Whether they bound anything."""
        return bool(self.max_pixels or self.inside or self.cover)

    def useful_width(self, width: int, height: int) -> int:
        """Return the width beyond which a picture of this size shows the model nothing more, in pixels.

        Never below `USUAL_WIDTH_PX`, unless the picture is: a processor that shrinks a larger JPEG averages
        its artefacts away, so a square of 128 pixels is better fed from 448 than from 128.
        """
        found: list[int] = []
        if self.max_pixels:
            # s w * s h <= max_pixels
            found.append(math.floor(width * math.sqrt(self.max_pixels / (width * height)) + 1e-6))
        if self.inside:
            # s w <= box width and s h <= box height
            found.append(math.floor(max(min(w, width * h / height) for w, h in self.inside) + 1e-6))
        if self.cover:
            # s w >= box width and s h >= box height
            found.append(math.ceil(max(self.cover[0], width * self.cover[1] / height) - 1e-6))
        return min(width, max(USUAL_WIDTH_PX, min(found, default=0)))


UNKNOWN_LIMITS = ImageLimits()
"""Those of a target that does not say what it can use."""


WHOLE = ImageLimits(max_pixels=MAX_SIDE_PX**2)
"""Those of a target that can use every picture as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uplink:
    """What is known of the link that carries pictures to the target; the defaults are those without a link.

    `bps` is its rate in bit/s, measured on pictures of `measured_bytes`; None before the first one. At most
    `window_bytes` are under way in a round trip of `rtt_s` (0: no bound), and a picture has at most
    `max_bytes`.
    """

    bps: float | None = math.inf
    measured_bytes: float = math.inf
    window_bytes: float = math.inf
    rtt_s: float = 0.0
    max_bytes: float = math.inf

    def bytes_within(self, seconds: float) -> float | None:
        """Return how many bytes arrive within `seconds` of the first; None before a rate was measured.

        At most four times as many as the rate was measured on: few bytes say little about many.
        """
        if self.bps is None:
            return None
        rated = seconds * self.bps / 8
        if rated > self.window_bytes and self.rtt_s > 0:
            # A window per round trip is the most that passes once the first window is out.
            rated = min(rated, max(self.window_bytes, seconds * self.window_bytes / self.rtt_s))
        return min(rated, self.max_bytes, 4 * self.measured_bytes)


NO_LINK = Uplink()
"""That of a target in this process."""
