"""Messages to bytes and back, and core types to messages and back. Pure functions and one small class.

Whatever arrives, decoding returns a message or raises ProtocolError, nothing else.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from vlm_spec_decode.core.errors import ProtocolError, VersionMismatch
from vlm_spec_decode.core.types import (
    MAX_BOXES,
    MAX_INSTRUCTION_CHARS,
    MAX_MESSAGE_BYTES,
    MAX_SIDE_PX,
    OBJECTIVES,
    UNKNOWN_LIMITS,
    AnswerRequest,
    Chat,
    ChatTurn,
    Commit,
    Correction,
    DraftMessage,
    EarlyExitVerdict,
    Hint,
    Image,
    ImageLimits,
    MoreSamples,
    Observation,
    SamplingParams,
    Size,
    Tokens,
)
from vlm_spec_decode.decoding.tree import WEIGHT_STEP, chain_parents, quantise
from vlm_spec_decode.protocol import distributions
from vlm_spec_decode.protocol.messages import (
    LOAD_VERSION,
    MAX_SENT_IMAGE_BYTES,
    MAX_WIRE_NODES,
    MAX_WIRE_TOKENS,
    OLDEST_VERSION,
    UNTOLD,
    VERSION,
    AnyMessage,
    Open,
    Welcome,
    WireChat,
    WireCommit,
    WireCorrection,
    WireDraft,
    WireEarly,
)

MIN_WINDOW_BYTES = 4096
"""The smallest window for an image: one chunk."""

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)
_VERSION_BYTES = {version: bytes([version]) for version in range(OLDEST_VERSION, VERSION + 1)}


def encode(message: AnyMessage, version: int = VERSION) -> bytes:
    """Return the bytes of one message. Who reads an earlier version ignores the fields that it lacks.

    What version 4 has added is left out before it: commits are most of what a cloud sends.
    """
    body: object = message
    if version < LOAD_VERSION and isinstance(message, Open | WireCommit):
        body = (message.__struct_config__.tag, *msgspec.structs.astuple(message)[:-1])
    return _VERSION_BYTES[version] + _ENCODER.encode(body)


def decode(data: bytes) -> AnyMessage:
    """Return the message in `data`, of any version that is understood.

    Raises ProtocolError, or VersionMismatch.
    """
    if not 2 <= len(data) <= MAX_MESSAGE_BYTES:
        raise ProtocolError(f"a message of {len(data)} bytes")
    if data[0] not in _VERSION_BYTES:
        raise VersionMismatch(data[0], VERSION)
    try:
        return _DECODER.decode(memoryview(data)[1:])
    except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError) as error:
        raise ProtocolError(f"not a message: {error}") from error


def begins_answer(data: bytes) -> bool:
    """Return whether a message is an Open, by its first bytes, without decoding it.

    An Open has more than 15 fields, so after the version byte comes the long form of an array: a byte that
    says so, two bytes of length, the tag.
    """
    return data[1:2] == b"\xdc" and data[4:5] == b"\x04"


class TokenPacker:
    """Packs token ids at a fixed width that the vocabulary size decides. Both ends know it."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.width = 2 if vocab_size <= 1 << 16 else 3

    def pack(self, tokens: Tokens) -> bytes:
        """Return `len(tokens) * width` bytes."""
        return b"".join(token.to_bytes(self.width, "little") for token in tokens)

    def unpack(self, data: bytes) -> Tokens:
        """Return the ids in `data`. Raises ProtocolError for a cut-off id or one outside the vocabulary."""
        if len(data) % self.width or len(data) > MAX_WIRE_TOKENS * self.width:
            raise ProtocolError(f"{len(data)} bytes of tokens at {self.width} bytes each")
        starts = range(0, len(data), self.width)
        tokens = tuple(int.from_bytes(data[i : i + self.width], "little") for i in starts)
        if tokens and max(tokens) >= self.vocab_size:
            raise ProtocolError(f"token {max(tokens)} of a vocabulary of {self.vocab_size}")
        return tokens

    def draft_to_wire(self, draft: DraftMessage) -> WireDraft:
        """Return the wire form of a draft; a chain on the prefix carries no parents."""
        parents = None
        if draft.parents != chain_parents(draft.first_node, len(draft.tokens)):
            numbers = range(draft.first_node, draft.first_node + len(draft.tokens))
            pairs = zip(numbers, draft.parents, strict=True)
            parents = b"".join((n - p if p else 0).to_bytes(2, "little") for n, p in pairs)
        weights = bytes(draft.weights) if any(draft.weights) else None
        tokens = self.pack(draft.tokens)
        head = (draft.answer, draft.epoch, draft.base, draft.first_node)
        q = distributions.pack_q(draft.q, self.width) if draft.q else None
        return WireDraft(*head, tokens, parents, weights, q)

    def draft_from_wire(self, message: WireDraft) -> DraftMessage:
        """Return the draft in `message`. Raises ProtocolError if its parts do not fit together."""
        tokens = self.unpack(message.tokens)
        first, count = message.first_node, len(tokens)
        if not 0 < count <= MAX_WIRE_NODES or first < 1 or message.base < 0:
            raise ProtocolError(f"a draft of {count} nodes from {first} on, base {message.base}")
        packed, weights = message.parents or b"", tuple(message.weights or ())
        if len(packed) not in {0, 2 * count} or len(weights) not in {0, count}:
            raise ProtocolError("a draft whose parents or weights are not one per node")
        parents = chain_parents(first, count)
        if packed:
            parents = tuple(_parent(packed, i, first + i) for i in range(count))
        q = distributions.unpack_q(message.q, tokens, self.width, self.vocab_size) if message.q else ()
        return DraftMessage(message.answer, message.epoch, message.base, first, tokens, parents, weights, q)

    def client_message_to_wire(self, message: Hint) -> WireDraft | WireCorrection:
        """Return the wire form of a message of the edge; a request for n more samples is sent as token -n."""
        if isinstance(message, DraftMessage):
            return self.draft_to_wire(message)
        if isinstance(message, MoreSamples):
            return WireCorrection(message.answer, message.epoch, message.position, -message.count)
        return WireCorrection(message.answer, message.epoch, message.position, message.token)

    def client_message_from_wire(self, message: WireDraft | WireCorrection) -> Hint:
        """Return the draft, correction or request for samples in `message`. Raises ProtocolError."""
        if isinstance(message, WireDraft):
            return self.draft_from_wire(message)
        if (
            not 0 <= message.position <= MAX_WIRE_TOKENS
            or not -MAX_WIRE_TOKENS <= message.token < self.vocab_size
        ):
            raise ProtocolError(f"a correction to {message.token} at {message.position}")
        if message.token < 0:
            return MoreSamples(message.answer, message.epoch, message.position, -message.token)
        return Correction(message.answer, message.epoch, message.position, message.token)

    def commit_to_wire(self, commit: Commit) -> WireCommit:
        """Return the wire form of a commit."""
        return WireCommit(
            commit.answer,
            commit.epoch,
            commit.start,
            self.pack(commit.tokens),
            commit.node,
            commit.pass_id,
            commit.finished,
            round(commit.compute_s * 1e6),
            distributions.pack_residual(commit.residual, self.width) if commit.residual else None,
            quantise(math.log(commit.floor)) if commit.floor else UNTOLD,
        )

    def commit_from_wire(self, message: WireCommit) -> Commit:
        """Return the commit in `message`. Raises ProtocolError."""
        if message.start < 0 or message.node < 0 or not 0 <= message.floor <= UNTOLD:
            raise ProtocolError(f"a commit at {message.start} of node {message.node}, floor {message.floor}")
        packed = message.residual
        return Commit(
            message.answer,
            message.epoch,
            message.start,
            self.unpack(message.tokens),
            message.node,
            message.pass_id,
            message.finished,
            message.compute_us / 1e6,
            distributions.unpack_residual(packed, self.width, self.vocab_size) if packed else None,
            math.exp(-WEIGHT_STEP * message.floor) if message.floor < UNTOLD else 0.0,
        )


def early_exit_to_wire(early: EarlyExitVerdict) -> WireEarly:
    """Return the wire form of an early-exit verdict."""
    name = (early.answer, early.epoch, early.pass_id, early.exit_layer)
    return WireEarly(*name, early.node, early.next_token, round(255 * early.confidence))


def early_exit_from_wire(message: WireEarly) -> EarlyExitVerdict:
    """Return the early-exit verdict in `message`. Raises ProtocolError."""
    if not 0 <= message.confidence <= 255 or message.node < 0 or message.next_token < 0:
        raise ProtocolError("an early verdict out of range")
    head = (message.answer, message.epoch, message.pass_id, message.exit_layer)
    return EarlyExitVerdict(*head, message.node, message.next_token, message.confidence / 255)


def open_message(
    request: AnswerRequest,
    packer: TokenPacker,
    epoch: int,
    committed: Tokens,
    patience_ms: int = 0,
    draft: DraftMessage | None = None,
    deadline_s: float | None = None,
) -> Open:
    """Return the Open of `request` under `epoch`, with the tokens that the edge already has, and a draft.

    `deadline_s` is what is left of the request's own, if it is not sent at once.
    """
    left_s = request.deadline_s if deadline_s is None else deadline_s
    observation, params, image = request.observation, request.params, request.observation.image
    return Open(
        answer=request.answer,
        epoch=epoch,
        strategy=request.strategy,
        instruction=observation.instruction,
        history=observation.history,
        stamp_s=observation.stamp_s,
        frame_id=observation.frame_id,
        image_digest=image.digest if image else b"",
        image_bytes=len(image.jpeg) if image else 0,
        image_width=image.width if image else 0,
        image_height=image.height if image else 0,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        max_tokens=params.max_tokens,
        stop_ids=params.stop_ids,
        seed=params.seed,
        rule=params.rule,
        params_digest=params.digest,
        committed=packer.pack(committed),
        residual=params.residual,
        objective=request.objective,
        patience_ms=patience_ms,
        draft=packer.draft_to_wire(draft) if draft else None,
        draft_step_us=round(1e6 * request.draft_step_s),
        chat=_chat_to_wire(observation.chat) if observation.chat else None,
        # One that is over is not the same as none.
        deadline_ms=max(1, round(1000 * left_s)) if request.deadline_s else 0,
    )


def _chat_to_wire(chat: Chat) -> WireChat:
    return tuple((turn.role, turn.text, turn.sees) for turn in chat.turns), chat.form, chat.pattern


def observed(message: Open, image: Image | None) -> Observation:
    """Return what an Open asks about; `image` is the one that it names. Raises ProtocolError."""
    chat = None
    if message.chat is not None:
        turns, form, pattern = message.chat
        try:
            chat = Chat(tuple(ChatTurn(*turn) for turn in turns), form, pattern)
        except ValueError as error:
            raise ProtocolError(str(error)) from error
        if chat.num_seen != bool(message.image_bytes):
            raise ProtocolError("a picture that no turn of the chat shows, or a turn that shows none")
    return Observation(image, message.instruction, message.history, message.stamp_s, message.frame_id, chat)


def answer_request(message: Open, packer: TokenPacker, image: Image | None) -> AnswerRequest:
    """Return the request in an Open whose image has arrived. Raises ProtocolError."""
    if (
        message.answer < 1
        or min(message.epoch, message.patience_ms, message.draft_step_us, message.deadline_ms) < 0
        or len(message.instruction) > MAX_INSTRUCTION_CHARS
    ):
        raise ProtocolError("an answer out of range")
    if not 0 <= message.image_bytes <= MAX_SENT_IMAGE_BYTES or message.max_tokens > MAX_WIRE_TOKENS:
        raise ProtocolError(f"an image of {message.image_bytes} bytes, {message.max_tokens} tokens")
    if bool(message.image_bytes) != bool(message.image_digest):
        # Nobody sends an image without a name: the cloud would wait for it for ever.
        raise ProtocolError(
            f"an image of {message.image_bytes} bytes, a digest of {len(message.image_digest)}"
        )
    try:
        params = SamplingParams(
            message.temperature,
            message.top_k,
            message.top_p,
            message.max_tokens,
            message.stop_ids,
            message.seed,
            message.rule,
            message.residual,
        )
    except ValueError as error:
        raise ProtocolError(str(error)) from error
    if params.digest != message.params_digest:
        raise ProtocolError("the two ends read the sampling parameters differently")
    observation = observed(message, image)
    committed = packer.unpack(message.committed)
    if message.objective not in OBJECTIVES:
        raise ProtocolError(f"objective {message.objective[:40]!r}; known: {', '.join(OBJECTIVES)}")
    draft = packer.draft_from_wire(message.draft) if message.draft else None
    head = (message.answer, observation, params, message.strategy, committed, message.epoch)
    step_s, deadline_s = message.draft_step_us / 1e6, message.deadline_ms / 1000
    return AnswerRequest(*head, message.objective, draft, step_s, deadline_s)


def limits_to_wire(limits: ImageLimits) -> list[Any] | None:
    """Return the wire form of what a target can use: [max_pixels, inside, cover]; None if that is unknown."""
    return [limits.max_pixels, limits.inside, limits.cover] if limits.is_known else None


def read_welcome(message: Welcome) -> tuple[Welcome, ImageLimits, tuple[str, ...]]:
    """Return a Welcome whose numbers are within bounds, what its target can use, and what was out of bounds.

    A number that is too large counts as the largest; what is no size at all is left out.
    """
    window = min(max(message.image_window_bytes, MIN_WINDOW_BYTES), MAX_SENT_IMAGE_BYTES)
    most = min(max(message.max_image_bytes, 1), MAX_SENT_IMAGE_BYTES)
    wrong = [
        f"{name} {found}"
        for name, found, bounded in (
            ("image_window_bytes", message.image_window_bytes, window),
            ("max_image_bytes", message.max_image_bytes, most),
        )
        if found != bounded
    ]
    limits = _limits_from_wire(message.image_limits, wrong)
    bounded_welcome = msgspec.structs.replace(message, image_window_bytes=window, max_image_bytes=most)
    return bounded_welcome, limits, tuple(wrong)


def _limits_from_wire(found: Any, wrong: list[str]) -> ImageLimits:
    """Return the limits in a Welcome; the names of parts that make no sense are added to `wrong`."""
    if found is None:
        return UNKNOWN_LIMITS
    if not isinstance(found, list) or len(found) < 3:
        wrong.append(f"image_limits {_shown(found)}")
        return UNKNOWN_LIMITS
    pixels = _bounded(found[0], 0, MAX_SIDE_PX**2, "image_limits.max_pixels", wrong) or 0
    boxes = found[1] if isinstance(found[1], list) else [found[1]]
    if len(boxes) > MAX_BOXES:
        wrong.append(f"image_limits.inside of {len(boxes)} boxes")
    inside = [_box(box, "image_limits.inside", wrong) for box in boxes[:MAX_BOXES]]
    cover = None if found[2] is None else _box(found[2], "image_limits.cover", wrong)
    return ImageLimits(max_pixels=pixels, inside=tuple(box for box in inside if box), cover=cover)


def _box(found: Any, name: str, wrong: list[str]) -> Size | None:
    if not isinstance(found, list) or len(found) != 2:
        wrong.append(f"{name} {_shown(found)}")
        return None
    width, height = (_bounded(side, 1, MAX_SIDE_PX, name, wrong) for side in found)
    return (width, height) if width and height else None


def _bounded(found: Any, low: int, high: int, name: str, wrong: list[str]) -> int | None:
    """Return a whole number, at most `high`; None, with its name in `wrong`, for what is none from `low`."""
    is_number = isinstance(found, int) and not isinstance(found, bool)
    if is_number and low <= found <= high:
        return int(found)
    wrong.append(f"{name} {_shown(found)}")
    return high if is_number and found > high else None


def _shown(found: Any) -> str:
    return repr(found)[:40]


def _parent(parents: bytes, index: int, number: int) -> int:
    distance = int.from_bytes(parents[2 * index : 2 * index + 2], "little")
    if distance >= number:
        raise ProtocolError(f"node {number} hangs {distance} above")
    return number - distance if distance else 0
