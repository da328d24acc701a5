"""What a target makes of people's own words: held-out phrasings, numbers, refusals, other languages.

Open loop: one frame, one saying, one answer, compared with what the teacher would do. Right is the same kinds
of action with nearly the same numbers; a wrong answer either moves otherwise than asked, or stands still and
says why. Closed loop: the episodes of `train.episodes`, told in held-out phrasings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from tqdm import tqdm

from vlm_spec_decode.actions.parser import ActionParser
from vlm_spec_decode.actions.types import Action, Ask, Done, Stop, Turn, Wait, action_numbers
from vlm_spec_decode.core.errors import ActionParseError
from vlm_spec_decode.core.types import Image, Observation
from vlm_spec_decode.sim.camera import FrontCamera
from vlm_spec_decode.sim.scene import random_scene
from vlm_spec_decode.sim.world import World
from vlm_spec_decode.train import scene_description, teacher
from vlm_spec_decode.train.evaluate import Pair, decode
from vlm_spec_decode.train.frames import observe, sample_pose
from vlm_spec_decode.train.instructions import held_out
from vlm_spec_decode.train.phrasings import Part, Phrasing, phrasings
from vlm_spec_decode.train.scene_description import VisibleObject
from vlm_spec_decode.train.spoken_dialogues import NO_MOTION, Saying, Sayings
from vlm_spec_decode.train.teacher import AnswerStyle

Verdict: TypeAlias = Literal["right", "stands", "moves"]

NUMBERS = ("forward", "back", "strafe", "turn", "wait")
"""Meanings whose action is a number that was said."""

OFF_SHARE = 0.25
"""A number that is further off than this share of itself has become another number."""

NEAR_DEG, NEAR_M, NEAR_SHARE = 15.0, 0.3, 0.35
"""Largest differences from the teacher's plan on the way to a thing that count as the right thing: what is
seen is estimated, and the next look corrects it."""


@dataclass(frozen=True, slots=True)
class SpokenView:
    """A frame of a held-out room, with what is in it by the ground truth."""

    image: Image
    objects: tuple[VisibleObject, ...]


@dataclass(frozen=True, slots=True)
class SpokenAnswer:
    """A saying about a frame, what the teacher would answer, and what the target does."""

    saying: Saying
    wanted: str
    text: str

    @property
    def plan(self) -> tuple[Action, ...]:
        """The target's actions."""
        return plan_of(self.text)

    @property
    def verdict(self) -> Verdict:
        """Whether this is the right thing, stands still with words, or does another thing."""
        plan = self.plan
        if does_right(self.saying, plan, plan_of(self.wanted)):
            return "right"
        stands = all(isinstance(action, (Done, Stop, Wait)) for action in plan)
        return "stands" if stands and _words(self.text) else "moves"


CUT_OFF = ""
"""The text of an answer that never came to its end; it counts as another motion."""


def plan_of(text: str) -> tuple[Action, ...]:
    """Return the actions of an answer, those before an error if there is one."""
    parser = ActionParser()
    try:
        parser.feed(text)
    except ActionParseError:
        return parser.actions
    return parser.actions


def _words(text: str) -> str:
    return text.partition("(")[0].strip(" .")


def does_right(saying: Saying, plan: tuple[Action, ...], wanted: tuple[Action, ...]) -> bool:
    """Whether a plan does what the teacher's does: the same kinds of action, in the same direction.

    Said numbers must be the teacher's exactly; those that follow from what is seen, nearly.
    """
    if not wanted or not plan:
        return False
    if all(isinstance(action, Done) for action in wanted):
        # Standing still is right; a question to the operator is another thing than an end.
        asks = [any(isinstance(action, Ask) for action in one) for one in (plan, wanted)]
        return all(isinstance(action, (Done, Stop)) for action in plan) and asks[0] == asks[1]
    is_exact = saying.goal.verb == "act"
    one, other = (_without_small_turns(p, is_exact) for p in (plan, wanted))
    if [type(action) for action in one] != [type(action) for action in other]:
        return False
    return all(_is_near(a, b, is_exact) for a, b in zip(one, other, strict=True))


def _without_small_turns(plan: tuple[Action, ...], is_exact: bool) -> tuple[Action, ...]:
    if is_exact:
        return plan
    return tuple(a for a in plan if not (isinstance(a, Turn) and abs(a.angle_deg) <= NEAR_DEG))


def _is_near(one: Action, other: Action, is_exact: bool) -> bool:
    for a, b in zip(action_numbers(one), action_numbers(other), strict=True):
        slack = NEAR_DEG if isinstance(one, Turn) else max(NEAR_M, NEAR_SHARE * abs(b))
        if abs(a - b) > (1e-6 if is_exact else slack + 1e-6):
            return False
    return True


def spoken_views(first_seed: int, count: int) -> Iterator[SpokenView]:
    """Yield a frame of each of `count` rooms from `first_seed` on."""
    camera: FrontCamera | None = None
    for seed in range(first_seed, first_seed + count):
        world = World(random_scene(seed), seed=seed)
        camera = camera or FrontCamera(world)
        camera.attach(world)
        world.teleport(sample_pose(world, np.random.default_rng([seed, 0x5A1D])))
        objects = scene_description.read_objects(observe(camera, world))
        yield SpokenView(Image(camera.jpeg(), camera.width_px, camera.height_px), objects)
    if camera:
        camera.close()


def spoken_figures(
    pair: Pair,
    style: AnswerStyle,
    first_seed: int,
    *,
    frames: int,
    phrases: int,
    numbers: int,
    refused: int,
    part: Part = "held_out",
) -> dict[str, Any]:
    """Measure a target on the phrasings of a part about `frames` fresh frames.

    `phrases` sayings of all meanings (each phrasing at most once before any is used again), `numbers` plain
    motions with an amount, `refused` that must not be done.
    """
    views = list(spoken_views(first_seed, frames))
    rng, sayings = np.random.default_rng([first_seed, 0x22]), Sayings(part)
    told = list(phrasings(part))
    chosen = [told[i % len(told)] for i in _order(rng, len(told), phrases)]
    answered = list(_answers(pair, style, rng, sayings, views, chosen, "phrasings"))
    figures = {"phrasings": _shares(answered), "by_voice": _by(answered, lambda p: p.voice)}
    figures["by_meaning"] = _by(answered, lambda p: p.meaning)
    figures["by_file"] = _by(answered, lambda p: p.file)
    figures["by_tongue"] = _by(answered, lambda p: p.tongue)
    of_numbers = [p for p in told if p.meaning in NUMBERS and p.slots & {"n", "d", "a", "t"}]
    asked = [of_numbers[int(i)] for i in rng.integers(0, len(of_numbers), numbers)]
    counted = list(_answers(pair, style, rng, sayings, views, asked, "numbers"))
    figures["numbers"] = _number_shares(counted)
    never = [p for p in told if p.meaning in NO_MOTION]
    asked = [never[int(i)] for i in rng.integers(0, len(never), refused)]
    stood = list(_answers(pair, style, rng, sayings, views, asked, "refused"))
    figures["no_motion"] = float(np.mean([a.verdict != "moves" for a in stood]))
    figures["no_motion_by_meaning"] = _by(stood, lambda p: p.meaning)
    rows = [(a.saying.phrasing.meaning, a.saying.goal.text, a.verdict, a.text) for a in answered]
    figures["failures"] = [row for row in rows if row[2] != "right"]
    return figures


def _order(rng: np.random.Generator, count: int, wanted: int) -> list[int]:
    rounds = -(-wanted // count)
    return [int(i) for _ in range(rounds) for i in rng.permutation(count)][:wanted]


def _answers(
    pair: Pair,
    style: AnswerStyle,
    rng: np.random.Generator,
    sayings: Sayings,
    views: list[SpokenView],
    asked: Iterable[Phrasing],
    name: str,
) -> Iterator[SpokenAnswer]:
    for i, phrasing in enumerate(tqdm(list(asked), desc=name, mininterval=5)):
        view = views[i % len(views)]
        saying = sayings.say(rng, view.objects, phrasing)
        wanted = teacher.answer(saying.goal, view.objects, (), style)
        observation = Observation(view.image, saying.goal.text)
        try:
            said = decode(pair, observation, pair.params()).text
        except ActionParseError:
            said = CUT_OFF  # longer than an answer may be: what it did until then is not what was asked
        yield SpokenAnswer(saying, wanted, said)


def _shares(answers: list[SpokenAnswer]) -> dict[str, float]:
    counts = Counter(a.verdict for a in answers)
    return {verdict: counts[verdict] / max(1, len(answers)) for verdict in ("right", "stands", "moves")}


def _by(answers: list[SpokenAnswer], key: Any) -> dict[str, str]:
    """Return "right/count" for each group of phrasings."""
    groups: dict[str, list[bool]] = {}
    for answer in answers:
        groups.setdefault(key(answer.saying.phrasing), []).append(answer.verdict == "right")
    return {name: f"{sum(rows)}/{len(rows)}" for name, rows in sorted(groups.items())}


def _number_shares(answers: list[SpokenAnswer]) -> dict[str, float]:
    """Return the shares of numbers that are exact, and that have become another number."""
    exact, off = [], []
    for answer in answers:
        plan, wanted = answer.plan, plan_of(answer.wanted)
        exact.append(plan == wanted)
        off.append(is_another_number(plan, wanted))
    return {"exact": float(np.mean(exact)), "off": float(np.mean(off))}


def is_another_number(plan: tuple[Action, ...], wanted: tuple[Action, ...]) -> bool:
    """Whether a plan moves, and by another sum of numbers than was said (`OFF_SHARE`), or another way."""
    told, meant = ([a for a in p if action_numbers(a)] for p in (plan, wanted))
    if not told:
        return False  # it stands still, or only ends: nothing has become another number
    if {type(a) for a in told} != {type(a) for a in meant}:
        return True
    one, other = (sum(action_numbers(a)[0] for a in p) for p in (told, meant))
    return abs(one - other) > OFF_SHARE * abs(other)


def fresh_seed(rng: np.random.Generator | None = None) -> int:
    """Draw a first seed of held-out rooms that nobody has looked at."""
    first = held_out().first_scene_seed
    return first + int((rng or np.random.default_rng()).integers(10_000_000, 2_000_000_000))
