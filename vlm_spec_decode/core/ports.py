"""The ports: abstract classes and protocols of what decoding, engine and executor need.

Implementations are, for example, a table model or a VLM, an in-process verifier or one behind a socket,
a kinematic robot or the Go2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from vlm_spec_decode.core.errors import VsdError
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.core.trace import NO_TRACER, LinkUsage, Tracer
from vlm_spec_decode.core.types import (
    NO_LINK,
    RULES,
    UNKNOWN_LIMITS,
    AnswerRequest,
    Event,
    Hint,
    Image,
    ImageLimits,
    Observation,
    Tokens,
    Uplink,
)

if TYPE_CHECKING:  # help texts show names of models, and need no numpy for it
    import numpy as np
    import numpy.typing as npt

    from vlm_spec_decode.core.choices import Choices, LegalTokens, Logits

Scores: TypeAlias = "Logits | Choices"
"""What a model says after each row of a pass: logits [rows, vocab] on the host, or what answers for them."""

Tree: TypeAlias = tuple[Tokens, Tokens]
"""Nodes below a prefix: their tokens, and their parents: 0 for the prefix or the 1-based index of a node."""

NO_NODES: Tree = ((), ())

Mask: TypeAlias = "npt.NDArray[np.bool_]"
"""Which token ids are legal [vocab]."""


class Clock(Protocol):
    """Monotonic time in seconds."""

    def now(self) -> float:
        """Return monotonic seconds."""
        ...

    def sleep(self, duration_s: float) -> None:
        """Let `duration_s` seconds pass."""
        ...


class Rng(Protocol):
    """What `numpy.random.Generator` and a scripted test source have in common."""

    def random(self) -> float:
        """Return a number in [0, 1)."""
        ...


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What two ends must agree on before token ids mean the same to both.

    `image_limits` is the largest picture that the model can use; the ends need not agree on it. `rules` are
    the verification rules that what runs the model can apply.
    """

    model_id: str
    revision: str
    tokenizer_digest: str
    prompt_digest: str
    vocab_size: int
    num_layers: int
    exit_layers: Tokens = ()
    image_limits: ImageLimits = UNKNOWN_LIMITS
    rules: tuple[str, ...] = RULES


ExitHook: TypeAlias = Callable[[int, Any], None]
"""Called while a pass runs through the layers, with the exit's layer and its rows [1 + n].

They are logits from `ModelContext.score`, and `Scores` from `choose`.
"""


OnExit: TypeAlias = ExitHook | None

Rows: TypeAlias = "Tokens | None"
"""Rows of a pass that are asked for; None: all."""


class GrammarState(ABC):
    """The state of a grammar at one position of an answer. Immutable, so the branches of a tree share it."""

    __slots__ = ()

    @abstractmethod
    def mask(self) -> Mask | None:
        """Return the legal next tokens [vocab], None once the answer has ended.

        Raises GrammarError if nothing is legal although the answer has not ended.
        """

    def legal(self) -> LegalTokens | None:
        """Return the same, packed: a grammar that has packed bits does not unpack them for it."""
        from vlm_spec_decode.core.choices import LegalTokens

        mask = self.mask()
        return None if mask is None else LegalTokens.of(mask)

    @abstractmethod
    def after(self, token: int) -> GrammarState:
        """Return the state after `token`. Raises GrammarError if it is not legal here."""


class Grammar(Protocol):
    """A grammar of answers, compiled for one tokenizer."""

    @property
    def digest(self) -> str:
        """Hash of the grammar; with equal tokenizers, equal digests mean equal masks."""
        ...

    def start(self) -> GrammarState:
        """Return the state before the first token of an answer."""
        ...


class ModelContext(ABC):
    """One model's view of one answer: image and prompt, and the KV cache behind them.

    `score` is a pure function to its caller. What it has computed before it keeps in slots and never
    computes again; what is no longer below `prefix` it may forget. Only `score` must be written: the other
    methods have defaults for a context without a grammar, a calibration of its exits, or a cache.
    """

    __slots__ = ()

    @abstractmethod
    def score(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit: ExitHook | None = None
    ) -> Logits:
        """Return logits [1 + n, vocab]: row 0 after `prefix`, row i after the i-th node (from 1).

        `prefix` holds the answer's tokens so far. `tokens` and `parents` describe a tree below it:
        `parents[i - 1]` is 0 for the prefix or the 1-based index of an earlier node. `on_exit` is called
        with the logits of each early exit while the pass runs; a model without exits never calls it.
        """

    def choose(
        self, prefix: Tokens, tree: Tree = NO_NODES, on_exit: OnExit = None, rows: Rows = None
    ) -> Scores:
        """Return what `score` would, but leave the logits where they are: decoding asks for choices only.

        `tree` is the `tokens` and `parents` of `score`. With `rows` only those rows, in this order: the
        others need no product with the head. The default is for a model whose logits are in host memory.
        """
        logits = self.score(prefix, *tree, on_exit=on_exit)
        return logits if rows is None else logits[list(rows)]

    def prefill(self) -> None:
        """Fill the prompt's KV now. Idempotent; `score` does it when it has not been done."""
        self.choose(())

    def forced(self, prefix: Tokens) -> Tokens:  # noqa: ARG002
        """Return the run of tokens that can only follow `prefix`, one legal token each, at no pass.

        () without a grammar. Their KV is filled by the next `score` that has them in its prefix.
        """
        return ()

    def exit_chance(self, exit_layer: int, confidence: float) -> float:  # noqa: ARG002
        """Return how likely an exit's first choice, made with this confidence, is the final one.

        Without a calibration of the exits, the confidence itself.
        """
        return confidence

    @property
    def verifies_trees(self) -> bool:
        """Whether a pass takes trees; if not, it takes chains, each node below the one before."""
        return True

    @property
    def may_step(self) -> bool:
        """Whether a step may be run now. One that is run all the same may raise OverBudget."""
        return True

    @property
    def waited_s(self) -> float:
        """For how long its calls have waited for others to use the model, in seconds of the owner's clock."""
        return 0.0

    @property
    def kv_bytes(self) -> int:
        """Present size of the cache in bytes; 0 for a context that does not know it."""
        return 0

    def forget(self) -> None:  # noqa: B027
        """Free the cache between passes and stay usable: the next `score` computes what it needs again.

        The default does nothing, for a context without a cache.
        """

    def close(self) -> None:  # noqa: B027
        """Free all that the answer holds. Idempotent. The default does nothing."""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """One context's batch entry of a pass: what `ModelContext.choose` takes; without `rows` all of them."""

    context: ModelContext
    prefix: Tokens
    tokens: Tokens = ()
    parents: Tokens = ()
    on_exit: ExitHook | None = None
    rows: Rows = None

    def score(self) -> Scores:
        """Score this request by itself. Raises what `ModelContext.score` does."""
        return self.context.choose(self.prefix, (self.tokens, self.parents), self.on_exit, self.rows)

    def score_or_error(self) -> Scored:
        """Score this request by itself; return a VsdError instead of raising it."""
        try:
            return self.score()
        except VsdError as error:
            return error


Scored: TypeAlias = "Scores | VsdError"
"""The rows [1 + n] of one request, or the error that it raised."""


@dataclass(slots=True)
class WrappedContext(ModelContext):
    """A context that is `inner` in all that takes no time."""

    inner: ModelContext

    def forced(self, prefix: Tokens) -> Tokens:
        """Return what `inner` does: the grammar's tokens cost no step."""
        return self.inner.forced(prefix)

    def exit_chance(self, exit_layer: int, confidence: float) -> float:
        """Return what `inner` does: calibration is a look into a table."""
        return self.inner.exit_chance(exit_layer, confidence)

    @property
    def verifies_trees(self) -> bool:
        """Whether `inner` takes trees."""
        return self.inner.verifies_trees

    @property
    def kv_bytes(self) -> int:
        """Size of the cache of `inner`."""
        return self.inner.kv_bytes

    def close(self) -> None:
        """Close `inner`."""
        self.inner.close()


class Model(ABC):
    """A draft or a target model, loaded once and opened once per answer."""

    __slots__ = ()

    @property
    @abstractmethod
    def card(self) -> ModelCard:
        """Identity, for the handshake."""

    @property
    def step_bytes(self) -> int:
        """Bytes of weights that a step of one row reads, which is what it takes time for; 0: not known."""
        return 0

    @abstractmethod
    def open(self, observation: Observation) -> ModelContext:
        """Start one answer. Raises ImageError if the image cannot be decoded."""

    def score_batch(self, requests: Seq[ScoreRequest]) -> list[Scored]:
        """Return what `score` would for each request; one that fails leaves the others alone.

        No context may occur twice. The default scores one after the other; a model that runs all of them in
        one pass raises OutOfMemory if that pass has no room. Then nothing has been computed, and a part of
        the requests may be tried again.
        """
        return [request.score_or_error() for request in requests]


@dataclass(frozen=True, slots=True)
class WrappedModel(Model):
    """A model that does something about `inner`, and is that model to everybody else."""

    inner: Model

    @property
    def card(self) -> ModelCard:
        """Identity of the inner model."""
        return self.inner.card

    @property
    def step_bytes(self) -> int:
        """Bytes that a step of the inner model reads."""
        return self.inner.step_bytes


Drafter: TypeAlias = ModelContext
"""The edge drafts from this context's logits; wrong drafts cost time and change no token."""

Target: TypeAlias = Model
"""The cloud's model; its logits decide."""


class TextCodec(Protocol):
    """Token ids to text and back, as the shared tokenizer has it."""

    def encode(self, text: str) -> Tokens:
        """Return token ids of `text` without special tokens."""
        ...

    def decode(self, tokens: Seq[int]) -> str:
        """Return text of `tokens`, special tokens left out."""
        ...


class Verifier(ABC):
    """The verifier as strategies use it: in this process, in virtual time or behind a socket.

    One verifier has one answer open. Where several may be open at once, each has a verifier of its own from
    `another`, on the same connection and target; the cloud then runs them in shared passes.
    """

    @property
    def max_answers(self) -> int:
        """How many answers may be open at once, each at a verifier of its own."""
        return 1

    def another(self) -> Verifier:
        """Return a verifier for one more answer beside those of this one. Raises NotImplementedError."""
        raise NotImplementedError(f"{type(self).__name__} has one answer open at a time")

    @abstractmethod
    def open(self, request: AnswerRequest, tracer: Tracer = NO_TRACER) -> None:
        """Start one answer; `tracer` gets all its events.

        Raises CloudUnreachable or CloudRefused.
        """

    @abstractmethod
    def submit(self, message: Hint) -> None:
        """Send a draft or a correction without blocking; it arrives unless the session ends."""

    @abstractmethod
    def poll(self) -> Event | None:
        """Return the next event if one is there."""

    @abstractmethod
    def wait(self, timeout_s: float) -> Event:
        """Block for the next event. Raises CloudTimeout, CloudUnreachable or Cancelled."""

    @abstractmethod
    def cancel(self) -> None:
        """Abandon the open answer, from any thread; a blocked `wait` raises Cancelled."""

    @abstractmethod
    def close(self) -> None:
        """End the answer and free what it holds. Idempotent."""

    def disconnect(self) -> None:
        """End the answer and the connection to the cloud. Idempotent."""
        self.close()

    @property
    def models(self) -> AbstractContextManager[object]:
        """Held while the target runs in this process; who runs a model that it may share holds it, too."""
        return nullcontext()

    @property
    def shares_processor(self) -> bool:
        """Whether the target runs on the processor that drafts run on: each then waits for the other."""
        return False

    @property
    def target_bytes(self) -> int:
        """`Model.step_bytes` of the target; 0: not known."""
        return 0

    @property
    def usage(self) -> LinkUsage:
        """Bytes that the newest answer has put on the link so far, 0 without a link; stays after `close`."""
        return LinkUsage()

    @property
    def clouds(self) -> str:
        """The clouds' addresses, with commas, starting with the one in use; "" without any."""
        return ""

    @property
    def is_reachable(self) -> bool:
        """Whether the target can be asked now, as far as is known, also while no answer is open."""
        return True

    @property
    def image_limits(self) -> ImageLimits:
        """The largest picture that the target can use; without bounds if it is not known."""
        return UNKNOWN_LIMITS

    @property
    def uplink(self) -> Uplink:
        """What is known of the link that carries pictures; by default there is none."""
        return NO_LINK


class RobotDriver(Protocol):
    """What the executor needs from a robot. `stop` may be called from any thread at any time."""

    def start(self) -> None:
        """Bring the robot into a state in which it walks. Raises RobotUnreachable or RobotRefused."""
        ...

    def move(self, vx_mps: float, vy_mps: float, vyaw_radps: float) -> None:
        """Command a body velocity (x forward, y left, yaw left); it holds for at most 1 s."""
        ...

    def stop(self) -> None:
        """End all motion and return when the state confirms it. Raises RobotError if it does not."""
        ...

    def posture(self, name: str) -> None:
        """Carry out a posture (`core.robot.POSTURES` or its own); return when the state confirms it."""
        ...

    def look(self, pitch_rad: float, yaw_rad: float) -> None:
        """Tilt the standing body (pitch down positive, yaw left positive)."""
        ...

    def state(self) -> RobotState:
        """Return the newest state. Raises RobotStale if none has arrived for too long."""
        ...

    def close(self) -> None:
        """Stop the robot and free everything. Idempotent."""
        ...


class Camera(Protocol):
    """A source of frames."""

    def frame(self) -> tuple[Image, float]:
        """Return the newest frame and its capture time in seconds of the source's clock."""
        ...

    def close(self) -> None:
        """Free everything. Idempotent."""
        ...
