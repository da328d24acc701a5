"""An engine that says what it is told to, and an executor that carries out whatever it hears."""

import io
import threading
import time
from dataclasses import dataclass, field

from PIL import Image as PilImage

from vlm_spec_decode.actions.parser import ActionParser
from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.actions.types import format_action
from vlm_spec_decode.core.errors import Cancelled, CloudUnreachable
from vlm_spec_decode.core.trace import GenerationResult
from vlm_spec_decode.edge.engine import AnswerUpdate
from vlm_spec_decode.edge.image_upload import for_uplink


def plain_jpeg(width=32, height=24) -> bytes:
    buffer = io.BytesIO()
    PilImage.new("RGB", (width, height), (200, 30, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def result_of(text: str) -> GenerationResult:
    return GenerationResult(
        tokens=(1, 2, 3),
        text=text,
        strategy="speculative",
        rule="coupled",
        rounds=(),
        early_verdicts=0,
        time_to_first_token_s=0.1,
        time_to_first_action_s=0.2,
        total_s=0.3,
    )


@dataclass
class ScriptedEngine:
    """`script` holds one item per answer: its pieces of text, or an error in place of a piece.

    A piece "…" waits until the answer is cancelled, as a cloud that has stopped talking does.
    """

    script: list
    seen: list = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def picture(self, data):
        return for_uplink(data)

    def answer(self, observation, *, preview=False):
        self.seen.append(observation)
        self.cancelled.clear()
        parser, text, number = ActionParser(), "", len(self.seen)
        pieces = self.script[min(number, len(self.script)) - 1]
        for i, piece in enumerate(pieces):
            if isinstance(piece, Exception):
                raise piece
            if piece == "…":
                assert self.cancelled.wait(40), "nobody cancelled the answer"
                raise Cancelled("the answer was cancelled")
            text += piece
            last = i == len(pieces) - 1
            actions = parser.feed(piece)
            if last:
                parser.finish()
            yield AnswerUpdate(
                answer=number,
                tokens=(i,),
                text=text,
                actions=actions,
                result=result_of(text) if last else None,
            )

    def cancel(self):
        self.cancelled.set()


@dataclass
class ScriptedEngines:
    """An engine that is there, or comes back `away` looks after it was lost; `alone` is the draft's."""

    engine: ScriptedEngine | None
    alone: ScriptedEngine | None = None
    away: float = 0
    error: Exception = field(default_factory=lambda: CloudUnreachable("gone"))
    losses: int = 0
    used: list = field(default_factory=list)

    @property
    def current(self):
        if self.away > 0:
            self.away -= 1
            return None
        return self.engine

    def ensure(self):
        return self.current

    def reconnect(self):
        self.losses += 1
        self.away = self.returns_after

    returns_after: float = 0

    def draft(self):
        return self.alone

    def set_active(self, engine):
        self.used.append(engine)


@dataclass
class EchoExecutor:
    """Reports every final plan as carried out, or ends it with `verdict` as soon as it holds an action."""

    verdict: PlanStatus | None = None
    latched: bool = False
    plans: list = field(default_factory=list)

    def take(self, plan: Plan) -> PlanStatus:
        self.plans.append((time.monotonic(), plan))
        state = "done" if plan.final else "idle"
        executed = tuple(format_action(action) for action in plan.actions)
        status = PlanStatus(plan.mission, plan.answer, len(executed), state, executed=executed)
        if self.latched:
            return PlanStatus(state="estop", reason="estop", detail="latched")
        if self.verdict is not None and plan.actions:
            verdict = self.verdict
            return PlanStatus(
                plan.mission, plan.answer, 0, verdict.state, verdict.reason, verdict.detail, executed[0]
            )
        return status
