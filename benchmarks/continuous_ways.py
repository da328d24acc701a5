"""The ways of running a mission that benchmarks/continuous.py compares, by name.

`present` is what the nodes do today. Each other way changes one thing, and is measured against `present` on
the same missions. A new one is a function with the signature of `Run`, and a line in `WAYS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from continuous_rig import Ahead, PacedEngine, VirtualBackground, VirtualRobot, run_mission

from vlm_spec_decode.actions.types import Action
from vlm_spec_decode.core.trace import GenerationResult
from vlm_spec_decode.core.types import Image, Observation
from vlm_spec_decode.edge.engine import DraftedAction
from vlm_spec_decode.mission.connection import Answerer, TextUpdate
from vlm_spec_decode.mission.state import MissionEnd, RunnerConfig, SearchMode, Start

Run: TypeAlias = Callable[[VirtualRobot, PacedEngine, str, RunnerConfig], MissionEnd]
"""Runs one instruction on a robot with an engine, to the mission's end."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way of running a mission, and what it changes.

    `words`: the expression of what an answer may say before its first action, if it is not the usual one.
    `branches`: whether what is drafted ahead may branch where a distance is told.
    """

    about: str
    run: Run = run_mission
    words: str | None = None
    branches: bool = True


@dataclass(slots=True)
class WholeAnswers:
    """An `Answerer` that keeps an answer's actions back until its end."""

    inner: Answerer

    def picture(self, data: bytes) -> Image:
        """Return the frame as the engine sends it."""
        return self.inner.picture(data)

    def answer(self, observation: Observation, *, preview: bool = False) -> Iterator[TextUpdate]:
        """Yield each commit's text, and all actions with the last."""
        kept: tuple[Action, ...] = ()
        for update in self.inner.answer(observation, preview=preview):
            kept += update.actions
            yield _Update(update, () if update.result is None else kept)

    def cancel(self) -> None:
        """Abandon the answer."""
        self.inner.cancel()


@dataclass(frozen=True, slots=True)
class _Update:
    update: TextUpdate
    actions: tuple[Action, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.update.tokens

    @property
    def text(self) -> str:
        return self.update.text

    @property
    def result(self) -> GenerationResult | None:
        return self.update.result

    @property
    def drafted(self) -> DraftedAction | None:
        return self.update.drafted


def _whole(robot: VirtualRobot, engine: PacedEngine, instruction: str, config: RunnerConfig) -> MissionEnd:
    return run_mission(
        robot, WholeAnswers(engine), instruction, replace(config, search="stepwise", replan="standing")
    )


def _together(robot: VirtualRobot, engine: PacedEngine, instruction: str, config: RunnerConfig) -> MissionEnd:
    return run_mission(robot, engine, instruction, replace(config, replan="walking"))


def _stepwise(robot: VirtualRobot, engine: PacedEngine, instruction: str, config: RunnerConfig) -> MissionEnd:
    return run_mission(robot, engine, instruction, replace(config, search="stepwise", replan="standing"))


def _turning(robot: VirtualRobot, engine: PacedEngine, instruction: str, config: RunnerConfig) -> MissionEnd:
    return run_mission(robot, engine, instruction, replace(config, replan="standing", search_looks=1))


def _two_looks(
    robot: VirtualRobot, engine: PacedEngine, instruction: str, config: RunnerConfig
) -> MissionEnd:
    return run_mission(robot, engine, instruction, replace(config, replan="standing", search_looks=2))


def _three_looks(
    robot: VirtualRobot, engine: PacedEngine, instruction: str, config: RunnerConfig
) -> MissionEnd:
    return run_mission(robot, engine, instruction, replace(config, replan="standing", search_looks=3))


def _replanning(
    robot: VirtualRobot, engine: PacedEngine, instruction: str, config: RunnerConfig
) -> MissionEnd:
    return run_mission(robot, engine, instruction, replace(config, search="stepwise", replan="walking"))


def _early(ahead: Ahead, search: SearchMode = "stepwise", start: Start = "committed") -> Run:
    def run(robot: VirtualRobot, engine: PacedEngine, instruction: str, config: RunnerConfig) -> MissionEnd:
        config = replace(config, early_frames="on", search=search, start=start)
        return run_mission(robot, engine, instruction, config, VirtualBackground(engine, ahead))

    return run


def _on_the_draft(
    robot: VirtualRobot, engine: PacedEngine, instruction: str, config: RunnerConfig
) -> MissionEnd:
    return run_mission(robot, engine, instruction, replace(config, start="draft", search="stepwise"))


def _turning_on_the_draft(
    robot: VirtualRobot, engine: PacedEngine, instruction: str, config: RunnerConfig
) -> MissionEnd:
    return run_mission(robot, engine, instruction, replace(config, start="draft", search="turning"))


BRIEF = r"((the|no|there|i (do|have|can)) [^()]*[ \t\n.,;:!?])?"
"""Words about the thing asked for, and refusals, but no list of what else is in view ("i see ...")."""

WAYS = {
    "present": Way(
        "an action begins as soon as it is committed, the rest is decoded meanwhile; stop for every look",
        _stepwise,
    ),
    "turning": Way("a search turns on while it asks, one answer open at a time", _turning),
    "two_looks": Way("the same, with two frames open at once", _two_looks),
    "three_looks": Way("the same, with three", _three_looks),
    "replanning": Way(
        "looks again while it walks; the newer answer replaces the rest of the plan", _replanning
    ),
    "default": Way("all that is on by default: turning and early", _early("draft", "turning")),
    "together": Way("turning and replanning", _together),
    "whole": Way("no action begins before the end of its answer", _whole),
    "brief": Way(
        "an answer says nothing of what else is in view, so its first action comes sooner",
        _stepwise,
        words=BRIEF,
    ),
    "draft_start": Way("a small first motion may begin on the draft, before it is committed", _on_the_draft),
    "turning_draft": Way("`turning` and `draft_start` together", _turning_on_the_draft),
    "silent": Way("an answer begins with its first action", _stepwise, words=""),
    "settling": Way("the frame at rest is asked about while the body settles", _early("nobody")),
    "early": Way("settling, and the draft model drafts about frames on the way", _early("draft")),
    "early_chain": Way("early, with one chain drafted ahead", _early("draft"), branches=False),
    "default_chain": Way(
        "the default, with one chain drafted ahead", _early("draft", "turning"), branches=False
    ),
    "turning_early_draft": Way("turning, early and draft_start", _early("draft", "turning", "draft")),
}

ON_THE_DRAFT = frozenset({"draft_start", "turning_draft", "turning_early_draft"})
"""Ways that may begin a motion before it is committed: these have bars of their own."""
