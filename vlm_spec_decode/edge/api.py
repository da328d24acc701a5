"""The public engine: questions in, updates out, from a cloud or from both models in this process.

::

    with vsd.Engine.connect("tcp://10.0.0.2:5557", keys="~/keys") as engine:
        for update in engine.stream("go to the red chair", image="frame.jpg"):
            print(update.new_text, update.actions)

It owns the connection and its open answers, of which there may be several at a time. Whatever ends an answer
early (leaving the loop, an exception in its body, Ctrl-C, `cancel`, `close`) ends it at the cloud as well,
which frees its session; the other answers go on. Options and their defaults are those of `EdgeSettings`, and
so of the command line.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from vlm_spec_decode.actions.types import Action
from vlm_spec_decode.core import extras
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import (
    Cancelled,
    ConfigError,
    EngineBusy,
    EngineClosed,
    ImageError,
    UsageError,
)
from vlm_spec_decode.core.images import FAULTS, upright
from vlm_spec_decode.core.pixels import MAX_PIXELS, MAX_SIDE
from vlm_spec_decode.core.trace import GenerationResult, LinkUsage
from vlm_spec_decode.core.types import Image, Observation, Tokens
from vlm_spec_decode.edge.engine import DecodedAnswer, DraftedAction, EngineConfig
from vlm_spec_decode.edge.factory import EdgeRuntime, bring_up, check_settings
from vlm_spec_decode.edge.image_upload import read_image
from vlm_spec_decode.edge.mission_loop import check_instruction
from vlm_spec_decode.edge.picture_size import FixedDestination, PictureSizer
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.transport.address import wait_for_listener

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image as PilImage
    from typing_extensions import Self, Unpack

    ImageSource: TypeAlias = (
        Image | PilImage.Image | npt.NDArray[np.uint8] | bytes | bytearray | memoryview | str | Path
    )

CLOSE_S = 5.0
"""How long `close` waits for a thread whose answer it has cancelled."""


class EngineOptions(TypedDict, total=False):
    """How answers are decoded, by keyword; what is left out has the default of `EdgeSettings`.

    `strategy` and `rule` set how edge and cloud decode, `temperature` 0 is greedy, `seed` keys the sampling,
    `max_tokens` bounds an answer. `draft_length` is the tokens drafted per round, `draft_budget` what all
    drafting may take of this computer, such as "0.5core" or "3W". `draft_floor` is how likely a token must be
    to be drafted from and sent, `deadline_s` within what time an answer is of use, by which a busy cloud
    orders its work. `objective` is what the cloud saves: "latency", "balanced" or "cost". `image_budget_s` is
    how long a picture may take on the uplink, which decides its size. `answer_timeout_s` is the silence of
    the cloud that fails an answer. `draft` and `target` name checkpoints, DIR or ID[@REV][,dtype=…];
    `threads` is for computing. `grammar` constrains answers to the action language; the cloud must be started
    with the same choice (`vsd cloud --no-grammar`). `cloud_choice` "nearest" uses whichever of several clouds
    has the shortest round trip, "order" the first.
    """

    strategy: str
    rule: str
    temperature: float
    seed: int
    max_tokens: int
    draft_length: int
    draft_budget: str
    draft_floor: float
    deadline_s: float
    objective: str
    image_budget_s: float
    answer_timeout_s: float
    draft: str
    target: str
    threads: int
    grammar: bool
    cloud_choice: str


class QuestionOptions(TypedDict, total=False):
    """Optional parts of a question; `Engine.stream` describes them."""

    history: Sequence[str]
    scene: str
    free_text: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one commit of the target added to an answer. It is final: no later update changes it.

    `text` is the whole answer so far and `new_text` what is new of it; `tokens` and `actions` are the new
    ones. `usage` counts the bytes of the answer so far. `result` comes with the last update. `drafted` is not
    final: it is in further updates, which add nothing, of an answer whose draft was to be shown.
    """

    text: str
    new_text: str
    tokens: Tokens
    actions: tuple[Action, ...]
    usage: LinkUsage
    result: GenerationResult | None = None
    drafted: DraftedAction | None = None

    @property
    def is_final(self) -> bool:
        """Whether the answer ends here."""
        return self.result is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer: its text, its actions in order, and its rounds, times and bytes (`result`)."""

    text: str
    actions: tuple[Action, ...]
    result: GenerationResult

    @property
    def tokens(self) -> Tokens:
        """Token ids, those of the target's tokenizer."""
        return self.result.tokens

    @property
    def usage(self) -> LinkUsage:
        """Bytes on the link; all zero with both models in this process."""
        return self.result.usage

    def __str__(self) -> str:
        """Return the text."""
        return self.text


class AnswerStream(Iterator[Update]):
    """The updates of one answer, as they come. Closing it, or dropping it, ends the answer everywhere."""

    def __init__(
        self,
        engine: Engine,
        observation: Observation,
        *,
        free_text: bool = False,
        image_name: str = "",
        preview: bool = False,
    ) -> None:
        self._engine = engine
        self._observation = observation
        # A weak reference: the generator must not keep alive the stream whose end is to close it.
        self._open = _OpenAnswer(observation.instruction, weakref.ref(self))
        config = replace(engine._runtime.engine.config, free_text=free_text)
        self._updates = engine._decode(observation, config, image_name, preview, self._open)
        self._in_use = threading.Lock()

    @property
    def instruction(self) -> str:
        """What was asked."""
        return self._observation.instruction

    @property
    def observation(self) -> Observation:
        """The whole question, as both models see it."""
        return self._observation

    def __next__(self) -> Update:
        """Wait for the next update.

        Raises StopIteration at the end, Cancelled after `Engine.cancel`, EngineClosed after `Engine.close`,
        EngineBusy if too many answers are open or another thread waits here, CloudError if the cloud is lost
        or refuses, ActionParseError if the answer is not of the action language, ImageError for a picture
        whose shape a model cannot take.
        """
        self._engine._check_open()
        if not self._in_use.acquire(blocking=False):
            raise EngineBusy(f"another thread already waits for the answer to {self.instruction!r}")
        try:
            return next(self._updates)
        finally:
            self._in_use.release()

    def close(self) -> None:
        """End the answer here and at the cloud. Idempotent; from any thread."""
        if self._in_use.acquire(blocking=False):
            try:
                self._updates.close()
            finally:
                self._in_use.release()
        else:
            self._open.cancel()

    def __enter__(self) -> Self:
        """Return the stream itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()


class Engine:
    """Answers questions about images. Make one by `connect` or `local`, and close it, best by `with`.

    Up to `max_answers` answers may be open at a time, in one thread or in several; they share the draft
    model, and in the cloud its passes. One more is refused with EngineBusy until one has ended. `cancel` and
    `close` may be called from any thread. After a lost cloud the next question tries again.
    """

    def __init__(self, runtime: EdgeRuntime) -> None:
        """Take over what `edge.factory.bring_up` returned, and close it in the end."""
        self._runtime = runtime
        # Reentrant, since a signal handler of the thread that holds it may call `close`.
        self._lock = threading.RLock()
        self._open: list[_OpenAnswer] = []
        self._is_closed = False

    @classmethod
    def connect(
        cls,
        cloud: str,
        *,
        keys: str | Path | None = None,
        patience_s: float | None = None,
        **options: Unpack[EngineOptions],
    ) -> Self:
        """Load the draft model, connect to a cloud (`vsd cloud`) and shake hands.

        `cloud` is tcp://HOST:PORT, or several with commas, of which the first that answers is used. `keys`
        is a folder made by `vsd keys`; without it only a cloud on this machine is reached, in plaintext.
        `patience_s` is how long to wait for a cloud that does not listen yet; None: as long as `vsd ask`.

        Raises ConfigError, ModelError, VocabularyMismatch, CloudUnreachable, CloudRefused, MissingExtra.
        """
        if not cloud:
            raise ConfigError("no cloud is named; with both models in this process it is Engine.local()")
        folder = Path(keys).expanduser() if keys is not None else None
        patience = {} if patience_s is None else {"refused_s": float(patience_s)}
        return cls.from_settings(_settings(options, cloud=cloud, keys=folder, **patience))

    @classmethod
    def local(cls, **options: Unpack[EngineOptions]) -> Self:
        """Load both models into this process: by default the pair that ships, no network, no keys.

        Raises ConfigError, ModelError, VocabularyMismatch, MissingExtra.
        """
        return cls.from_settings(_settings(options))

    @classmethod
    def from_settings(cls, settings: EdgeSettings) -> Self:
        """Make an engine from settings, with a cloud if they name one. Errors as of `connect` and `local`."""
        check_settings(settings)
        if settings.cloud:
            wait_for_listener(settings.cloud, settings.refused_s, WallClock())
        with extras.translate_missing():
            return cls(bring_up(settings))

    @property
    def sees(self) -> bool:
        """Whether the models have a vision tower, so that a question needs an image."""
        return self._runtime.draft.sees

    @property
    def max_answers(self) -> int:
        """How many answers may be open at a time."""
        return self._runtime.engine.max_answers

    # Asking ------------------------------------------------------------------------------------------

    def stream(
        self,
        instruction: str,
        image: ImageSource | None = None,
        *,
        history: Sequence[str] = (),
        scene: str = "",
        free_text: bool = False,
    ) -> AnswerStream:
        """Return an iterator over the answer's updates; the question is sent when the first is asked for.

        `image` is what the robot sees: a path, the bytes of a file, RGB pixels [height, width, 3] of uint8,
        a Pillow image, or an `Image`. A language-only pair gets a description instead: `scene`, such as "a
        red chair 25 degrees left at 2.0 m". `history` has the actions already carried out for the
        instruction, as text. With `free_text` no actions are read from the answer; only an engine with
        `grammar=False` gives answers outside the action language.

        Raises InstructionError or ImageError at once, UsageError if a pair that sees has nothing to see; and
        what `AnswerStream.__next__` does.
        """
        observation = self._observation(instruction, image, tuple(history), scene)
        name = str(image) if isinstance(image, str | Path) else ""
        return self.answer(observation, free_text=free_text, image_name=name)

    def ask(
        self, instruction: str, image: ImageSource | None = None, **more: Unpack[QuestionOptions]
    ) -> Answer:
        """Return the whole answer; arguments and errors as of `stream`."""
        actions: tuple[Action, ...] = ()
        with self.stream(instruction, image, **more) as updates:
            for update in updates:
                actions += update.actions
                if update.result:
                    return Answer(text=update.text, actions=actions, result=update.result)
        raise Cancelled(f"the answer to {instruction!r} was closed before its end")

    def picture(self, image: ImageSource) -> Image:
        """Return a picture as both models see it: as large as the target can use and the uplink carries.

        `image` is as of `stream`; an `Image` is returned as it is. Raises ImageError.
        """
        return as_image(image, self._runtime.engine.pictures)

    def answer(
        self,
        observation: Observation,
        *,
        free_text: bool = False,
        image_name: str = "",
        preview: bool = False,
    ) -> AnswerStream:
        """Return an iterator over the answer's updates, for an observation that is ready. See `stream`.

        `image_name` is the picture's file in errors. With `preview` there are also updates with `drafted`,
        what the draft says of the first action.
        """
        self._check_open()
        return AnswerStream(self, observation, free_text=free_text, image_name=image_name, preview=preview)

    def draft_ahead(self, observation: Observation, *, walks_m: float = 0.0) -> Iterator[Tokens]:
        """Draft the answer without the cloud, as `edge.engine.Engine.draft_ahead` does."""
        self._check_open()
        return self._runtime.engine.draft_ahead(observation, walks_m=walks_m)

    # Ending ------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """End all open answers, here and at the cloud; who waits for one gets Cancelled. From any thread.

        `AnswerStream.close` ends one of them.
        """
        for answer in tuple(self._open):
            answer.cancel()

    def close(self) -> None:
        """End the open answers and the connection. Idempotent; from any thread, also in a signal handler."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            answers = tuple(self._open)
        try:
            self.cancel()
            for answer in answers:
                answer.end()
        finally:
            self._runtime.close()

    def __enter__(self) -> Self:
        """Return the engine itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()

    # Inside ------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineClosed("this engine has been closed")

    def _observation(
        self, instruction: str, image: ImageSource | None, history: tuple[str, ...], scene: str
    ) -> Observation:
        """Return the question. Raises its errors before anything is sent."""
        self._check_open()
        asked = check_instruction(instruction)
        for action in history:
            check_instruction(action)
        if scene and image is not None:
            raise ConfigError("an image and a scene in words: a pair either sees or is told")
        if scene:
            from vlm_spec_decode.models.prompt import with_scene

            return Observation(None, check_instruction(with_scene(scene, asked)), history)
        if image is None and self.sees:
            raise UsageError("the models have a vision tower and nothing to see: give them an image")
        return Observation(None if image is None else self.picture(image), asked, history)

    def _decode(
        self,
        observation: Observation,
        config: EngineConfig,
        image_name: str,
        preview: bool,
        mine: _OpenAnswer,
    ) -> Generator[Update, None, None]:
        """Decode one answer. However this generator ends, the answer ends at the verifier too."""
        engine, shown = self._runtime.engine, ""
        try:
            mine.answer = engine.answer(observation, config, preview=preview)
            self._begin(mine)
            for update in mine.answer:
                new_text, shown = update.text[len(shown) :], update.text
                yield Update(
                    text=update.text,
                    new_text=new_text,
                    tokens=update.tokens,
                    actions=update.actions,
                    usage=update.usage,
                    result=update.result,
                    drafted=update.drafted,
                )
        except ImageError as error:
            raise ImageError(f"{image_name}: {error}" if image_name else str(error)) from error
        except Cancelled:
            self._check_open()
            raise
        finally:
            self._end(mine)

    def _begin(self, answer: _OpenAnswer) -> None:
        with self._lock:
            self._check_open()
            if len(self._open) >= self.max_answers:
                open_ones = ", ".join(
                    f"{each.instruction!r} is still open in thread {each.thread.name}" for each in self._open
                )
                raise EngineBusy(
                    f"{open_ones}: an engine answers {self.max_answers} questions at a time; "
                    "close a stream, or use another engine"
                )
            answer.thread = threading.current_thread()
            self._open.append(answer)

    def _end(self, mine: _OpenAnswer) -> None:
        """Close the answer at the verifier, also one that an interrupt ended before it was fully open."""
        try:
            if mine.answer is not None:
                mine.answer.close()
        finally:
            with self._lock:
                self._open = [each for each in self._open if each is not mine]
            mine.ended.set()


class _OpenAnswer:
    """An answer that is open: whose it is, and when it has ended."""

    def __init__(self, instruction: str, stream: weakref.ref[AnswerStream]) -> None:
        self.instruction = instruction
        self.thread = threading.current_thread()
        self.ended = threading.Event()
        self.answer: DecodedAnswer | None = None
        self._stream = stream

    def cancel(self) -> None:
        """Abandon it; who waits for it gets Cancelled."""
        if self.answer is not None:
            self.answer.cancel()

    def end(self) -> None:
        """End it if it is between two updates, else wait for the thread whose answer was cancelled."""
        stream = self._stream()
        if stream is not None:
            stream.close()
        if self.thread is not threading.current_thread():
            self.ended.wait(CLOSE_S)


def as_image(source: ImageSource, pictures: PictureSizer | None = None) -> Image:
    """Return a picture as both models see it: an upright JPEG of the size that `pictures` chooses.

    Without `pictures` its size is that for a target of which nothing is known.

    `source` is a path, the bytes of an image file of any common format, RGB or grey pixels of uint8
    [height, width, 3] or [height, width], a Pillow image, or an `Image`. Raises ImageError.
    """
    pictures = pictures or PictureSizer(FixedDestination(), EdgeSettings().image_budget_s)
    if isinstance(source, Image):
        return source
    if isinstance(source, str | Path):
        return read_image(Path(source).expanduser(), pictures.reduce)
    if isinstance(source, bytes | bytearray | memoryview):
        return pictures.reduce(bytes(source))
    from PIL import Image as PilImage

    if isinstance(source, PilImage.Image):
        try:
            return pictures.reduce_pixels(upright(source))
        except FAULTS as error:
            raise ImageError(
                f"a Pillow image that cannot be read ({type(error).__name__}: {error})"
            ) from error
    return pictures.reduce_pixels(PilImage.fromarray(_pixels(source)).convert("RGB"))


def _pixels(source: object) -> npt.NDArray[np.uint8]:
    """Return an array of pixels. Raises ImageError for what is none."""
    import numpy as np

    try:
        found = np.asarray(source)
    except (TypeError, ValueError) as error:
        raise ImageError(f"{type(source).__name__} is no picture: {error}") from error
    is_shaped = found.ndim == 2 or (found.ndim == 3 and found.shape[2] == 3)
    if found.dtype != np.uint8 or not is_shaped or not found.size:
        shape = " x ".join(map(str, found.shape)) or "no shape"
        raise ImageError(
            f"{type(source).__name__} of {found.dtype}, {shape}, is no picture; "
            "pixels are uint8, [height, width, 3] in the order red, green, blue, or [height, width]"
        )
    if found.shape[0] * found.shape[1] > MAX_PIXELS or max(found.shape[:2]) > MAX_SIDE:
        raise ImageError(
            f"an image of {found.shape[1]} x {found.shape[0]} pixels; {MAX_PIXELS:,} are allowed"
        )
    return np.ascontiguousarray(found)


def _settings(options: Mapping[str, Any], **more: Any) -> EdgeSettings:
    """Return the settings that options make. Raises ConfigError for an unknown name or a wrong type."""
    defaults = EdgeSettings()
    for name, value in options.items():
        if name not in EngineOptions.__annotations__:
            known = ", ".join(EngineOptions.__annotations__)
            raise ConfigError(f"unknown option {name!r}; known: {known}")
        wanted = type(getattr(defaults, name))
        is_right = isinstance(value, (int, float) if wanted is float else wanted)
        if not is_right or (isinstance(value, bool) and wanted is not bool):
            raise ConfigError(f"{name}={value!r}: {wanted.__name__} is wanted, not {type(value).__name__}")
    return EdgeSettings(**options, **more)
