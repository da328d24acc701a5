"""Dialogues in people's own words: a meaning and a phrasing, filled for a frame, and the teacher's answer.

The meaning, and with it the truth, is drawn first; the words come after. Training draws from the taught
phrasings, measuring from the held-out ones; the inner parts of a sequence are always taught commands.
What the robot does not know is without end, so training also makes up sentences about it (`_strange`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
from transformers import PreTrainedTokenizerFast

from vlm_spec_decode.models.amounts import STEP_M, Quantity
from vlm_spec_decode.models.checkpoint import TRAINING_RECORD
from vlm_spec_decode.models.places import folder_of
from vlm_spec_decode.models.prompt import MAX_HISTORY
from vlm_spec_decode.models.subword import is_subword
from vlm_spec_decode.sim.objects import COLOURS, KINDS
from vlm_spec_decode.train import lexicon, teacher, text_noise
from vlm_spec_decode.train.instructions import FOLLOW_M, Goal, Pick, Relation
from vlm_spec_decode.train.phrasings import Part, Phrasing, by_meaning
from vlm_spec_decode.train.scene_description import VisibleObject
from vlm_spec_decode.train.spoken_numbers import Amount, draw_amount
from vlm_spec_decode.train.teacher import FULL, AnswerStyle, Dialogue

SHARES: Mapping[str, float] = {
    **{"goto": 0.17, "goto_stop": 0.08, "goto_behind": 0.02, "come": 0.01, "face": 0.04, "find": 0.04},
    **{"follow": 0.04, "pass": 0.045, "goto_nearest": 0.05, "goto_farthest": 0.02, "goto_leftmost": 0.04},
    **{"goto_rightmost": 0.04, "goto_beside": 0.012, "goto_hidden": 0.008, "goto_left_of": 0.008},
    **{"goto_right_of": 0.008, "is_there": 0.02, "how_far": 0.015, "what_colour": 0.01, "nearer": 0.01},
    **{"how_many": 0.01, "see": 0.008, "forward": 0.085, "back": 0.05, "strafe": 0.035, "turn": 0.08},
    **{"forward_some": 0.006, "back_some": 0.005, "strafe_some": 0.005, "turn_side": 0.012},
    **{"turn_bit": 0.008, "turn_around": 0.012, "full_turn": 0.008, "sit": 0.012, "stand_down": 0.008},
    **{"stand_up": 0.007, "rise": 0.004, "hello": 0.012, "stretch": 0.006, "wait": 0.02, "stop": 0.012},
    **{"two": 0.055, "three": 0.012, "negated": 0.03, "unsafe": 0.045, "impossible": 0.04},
    **{"meaningless": 0.04, "other_language": 0.02},
    **{"reply_colour": 0.008, "reply_nearest": 0.004, "reply_left": 0.004, "reply_right": 0.004},
    **{"reply_none": 0.002},
    **{f"{tongue}_goto": 0.012 for tongue in ("zh", "es", "de")},
    **{f"{tongue}_{m}": 0.004 for tongue in ("zh", "es", "de") for m in ("forward", "back", "turn")},
    **{
        f"{tongue}_{m}": 0.002
        for tongue in ("zh", "es", "de")
        for m in ("strafe", "turn_side", "turn_around", "stop")
    },
}
"""How often each meaning is asked for, in proportion."""

STRANGE_SHARE = 0.07
"""Share of what is taught that is made up of words that the robot does not know."""

NO_MOTION = frozenset({"negated", "unsafe", "impossible", "meaningless", "other_language"})
"""Meanings that are answered in words, standing still."""

SOME: Mapping[str, Fraction] = {"forward_some": Fraction(1, 2), "back_some": STEP_M, "strafe_some": STEP_M}
"""How far the robot goes if no distance is named, in metres."""

BIT_DEG, SIDE_DEG, ROUND_DEG = Fraction(20), Fraction(90), Fraction(180)

STOPS_M = (Fraction(6, 10), Fraction(3))
"""Distances at which an instruction may ask the robot to stop before an object."""

ANY_SHARE = 0.35
"""Share of "the nearest" and the like that are about all objects in view, not about those of a kind."""

AMBIGUOUS_SHARE = 0.5
"""Share of "go to" and the like that name only the kind, if several of it are in view."""

GESTURES = ("sit", "stand_down", "stand_up", "rise", "hello", "stretch", "stop")
LAST_GESTURES = frozenset({"sit", "stand_down"})
"""Gestures after which nothing else can be done."""

_REPLIES: Mapping[str, Pick] = {
    "reply_nearest": "nearest",
    "reply_left": "leftmost",
    "reply_right": "rightmost",
}
_PICKS: Mapping[str, Pick] = {
    "goto_nearest": "nearest",
    "goto_farthest": "farthest",
    "goto_leftmost": "leftmost",
    "goto_rightmost": "rightmost",
}
_RELATIONS: Mapping[str, Relation] = {
    "goto_beside": "beside",
    "goto_hidden": "behind",
    "goto_left_of": "left",
    "goto_right_of": "right",
}
_QUESTIONS = {
    "is_there": "there",
    "how_far": "far",
    "what_colour": "colour",
    "nearer": "nearer",
    "how_many": "many",
}


@dataclass(frozen=True, slots=True)
class Saying:
    """What was said: the goal with its text, the phrasing that it was made from, and its amounts."""

    goal: Goal
    phrasing: Phrasing
    amounts: tuple[Amount, ...] = ()


class Sayings:
    """Draws what people say about a frame, in phrasings of a part; `noise` is how they are typed.

    What is taught is put more ways than the other parts are: with openers before commands, and strange words.
    """

    def __init__(self, part: Part = "taught", *, noise: bool = True) -> None:
        self._phrasings = by_meaning(part)
        self._is_taught = part == "taught"
        self._noise = noise
        known = [m for m in SHARES if m in self._phrasings]
        shares = np.array([SHARES[m] for m in known])
        self._meanings, self._p = known, shares / shares.sum()

    @property
    def meanings(self) -> tuple[str, ...]:
        """The meanings that can be drawn."""
        return tuple(self._meanings)

    def phrasing(self, rng: np.random.Generator, meaning: str) -> Phrasing:
        """Draw a phrasing of a meaning."""
        return self._phrasings[meaning][int(rng.integers(len(self._phrasings[meaning])))]

    def draw(
        self, rng: np.random.Generator, view: tuple[VisibleObject, ...], meaning: str | None = None
    ) -> Saying:
        """Draw a saying, of `meaning` if it is given."""
        if self._is_taught and self._noise and meaning is None and rng.random() < STRANGE_SHARE:
            return self._written(rng, _strange(rng, view))
        drawn = meaning or str(rng.choice(self._meanings, p=self._p))
        return self.say(rng, view, self.phrasing(rng, drawn))

    def say(self, rng: np.random.Generator, view: tuple[VisibleObject, ...], phrasing: Phrasing) -> Saying:
        """Fill a phrasing for a frame."""
        return self._written(rng, _filled(rng, view, phrasing))

    def _written(self, rng: np.random.Generator, saying: Saying) -> Saying:
        return replace(saying, goal=replace(saying.goal, text=self.typed(rng, saying)))

    def typed(self, rng: np.random.Generator, saying: Saying) -> str:
        """Write it as people do. Of a reply only the reply is: what it replies to stands already."""
        text, meaning = saying.goal.text, saying.phrasing.meaning
        if not self._noise:
            return text
        first, mark, reply = text.rpartition(" . ") if meaning.startswith("reply") else ("", "", text)
        if self._is_taught and saying.phrasing.voice == "command":
            reply = text_noise.opened(rng, reply, meaning)
        return f"{first}{mark}{text_noise.noisy(rng, reply, meaning, saying.phrasing.tongue)}"


def draw_dialogue(
    rng: np.random.Generator,
    view: tuple[VisibleObject, ...],
    sayings: Sayings,
    style: AnswerStyle = FULL,
) -> Dialogue:
    """Draw one dialogue about a frame with these objects, in or out of view."""
    return dialogue_of(rng, view, sayings.draw(rng, view).goal, style)


Draw: TypeAlias = Callable[[np.random.Generator, tuple[VisibleObject, ...]], Dialogue]
"""What draws a dialogue about a frame."""


def drawer(tokenizer: PreTrainedTokenizerFast, style: AnswerStyle) -> Draw:
    """Return what draws the dialogues that go with a tokenizer: those of the phrasings with a subword one.

    The word-level one knows the words of `instructions` alone, and one style.
    """
    return _drawer(is_subword(tokenizer), style)


def _drawer(knows_phrasings: bool, style: AnswerStyle) -> Draw:
    if not knows_phrasings:
        return teacher.draw_dialogue
    return partial(draw_dialogue, sayings=Sayings(), style=style)


def _record(target: str | Path) -> Mapping[str, str]:
    """Return the settings that a model of `vsd train` was trained with, {} for other models."""
    folder = folder_of(target)
    file = folder / TRAINING_RECORD if folder else None
    if file is None or not file.is_file():
        return {}
    told: Mapping[str, str] = json.loads(file.read_text(encoding="utf-8")).get("config", {})
    return told


def knows_phrasings(target: str | Path) -> bool:
    """Whether a model was taught people's own phrasings. Raises ModelNotFound."""
    return _record(target).get("tokenizer", "None") != "None"


def style_of(target: str | Path) -> AnswerStyle:
    """Return the style of answers that a model was taught, by its record. Raises ModelNotFound."""
    told = _record(target)
    if not knows_phrasings(target):
        return FULL
    is_brief = told.get("description") == "brief"
    return AnswerStyle("brief" if is_brief else "full", float(told.get("max_step_m", FULL.max_step_m)))


def drawer_of(target: str | Path) -> Draw:
    """Return what draws dialogues such as a model was taught. Raises ModelNotFound."""
    return _drawer(knows_phrasings(target), style_of(target))


def dialogue_of(
    rng: np.random.Generator, view: tuple[VisibleObject, ...], goal: Goal, style: AnswerStyle = FULL
) -> Dialogue:
    """Draw what was done before for a goal, and let the teacher answer."""
    history = _history(rng, goal, view)
    return Dialogue(goal, history, teacher.answer(goal, view, history, style))


def _history(rng: np.random.Generator, goal: Goal, view: tuple[VisibleObject, ...]) -> tuple[str, ...]:
    if goal.verb in teacher.ONLY_WORDS or goal.verb in ("act", "see", "ask"):
        return () if rng.random() < 0.7 else teacher.draw_moves(rng, int(rng.integers(0, 4)))
    if goal.before:
        if rng.random() < 0.5:
            return ()
        done = tuple(call.replace(" ", "") + ")" for call in goal.before.split(")")[:-1])
        return (*done, *teacher.draw_history(rng, replace(goal, before=""), view))[-MAX_HISTORY:]
    history = teacher.draw_history(rng, goal, view)
    if teacher.is_near_stop(goal, view) and rng.random() < 0.5:
        # A correction of the distance, forwards or backwards, comes before the end.
        step_m = float(rng.choice((-1, 1))) * int(rng.integers(2, 13)) / 20
        history = (*history, f"forward({step_m:g})")[-MAX_HISTORY:]
    return history


Fill = Callable[[np.random.Generator, tuple[VisibleObject, ...], Phrasing], Saying]


def _filled(rng: np.random.Generator, view: tuple[VisibleObject, ...], phrasing: Phrasing) -> Saying:
    meaning = phrasing.meaning
    if phrasing.tongue != "en":
        return _foreign(rng, view, phrasing)
    if meaning in _SPECIAL:
        return _SPECIAL[meaning](rng, view, phrasing)
    if meaning == "see":
        return Saying(Goal(phrasing.text, "see"), phrasing)
    if meaning == "come":
        # Who speaks is a person: the robot goes to the nearest one that it sees, or looks for one.
        return Saying(Goal(phrasing.text, "goto", "person", pick="nearest"), phrasing)
    if meaning in _CALLS:
        return motion(rng, phrasing)
    if meaning in GESTURES:
        return Saying(Goal(phrasing.text, "act", action=f"{meaning} ( )"), phrasing)
    return _about_object(rng, view, phrasing)


def _worded(
    rng: np.random.Generator, phrasing: Phrasing, thing: str = "", other: str = "", **slots: str
) -> str:
    """Fill the slots of an English phrasing: the objects and, by name, the rest."""
    if phrasing.tongue != "en":
        found = lexicon.foreign_slots(phrasing.tongue, thing) if thing else {}
        return phrasing.text.format(**found, **slots)
    if thing:
        slots["x"] = lexicon.object_name(rng, thing)
        kind = thing.rsplit(maxsplit=1)[-1]
        slots["k"] = lexicon.kind_name(rng, kind)
        slots["ks"] = lexicon.plural(slots["k"])
    if other:
        slots["y"] = lexicon.object_name(rng, other)
    return phrasing.text.format(**slots)


def _about_object(rng: np.random.Generator, view: tuple[VisibleObject, ...], phrasing: Phrasing) -> Saying:
    saying = about(rng, phrasing, thing := _thing(rng, view, phrasing.meaning))
    # At the stop distance the robot decides to end, and few distances drawn by chance are near it.
    tries = 20 if phrasing.meaning == "goto_stop" and rng.random() < 0.5 else 0
    while tries and not teacher.is_near_stop(saying.goal, view):
        saying, tries = about(rng, phrasing, thing), tries - 1
    return saying


def about(rng: np.random.Generator, phrasing: Phrasing, thing: str) -> Saying:
    """Fill an instruction about one object: go, stop before, face, find, follow, pass, ask."""
    meaning = phrasing.meaning
    verbs = {"face": "face", "find": "find", "follow": "follow", "pass": "pass"}
    if meaning in _QUESTIONS:
        goal = Goal("", "ask", thing, _QUESTIONS[meaning])
        return Saying(replace(goal, text=_worded(rng, phrasing, thing)), phrasing)
    verb = verbs.get(meaning, "goto")
    goal = Goal("", verb, thing, may_ask=" " not in thing)  # type: ignore[arg-type]
    if meaning == "follow":
        goal = replace(goal, stop_m=FOLLOW_M)
    if meaning == "goto_behind":
        goal = replace(goal, is_behind=True, may_ask=False)
    if meaning == "pass":
        side = _side(rng)
        text = _worded(rng, phrasing, thing, s=side)
        return Saying(replace(goal, side=side, text=text), phrasing)  # type: ignore[arg-type]
    if meaning == "goto_stop":
        amount = draw_amount(rng, "distance")
        while not STOPS_M[0] <= amount.on_grid <= STOPS_M[1]:
            amount = draw_amount(rng, "distance")
        text = _worded(rng, phrasing, thing, n=amount.text)
        return Saying(replace(goal, stop_m=float(amount.on_grid), text=text), phrasing, (amount,))
    return Saying(replace(goal, text=_worded(rng, phrasing, thing)), phrasing)


def _thing(rng: np.random.Generator, view: tuple[VisibleObject, ...], meaning: str) -> str:
    """Draw what is spoken of: mostly in view, sometimes a kind of which several are."""
    kinds = [t.kind for t in view if t.is_visible]
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if twice and meaning in ("goto", "face", "follow") and rng.random() < AMBIGUOUS_SHARE:
        return str(rng.choice(twice))
    thing = teacher.choose_thing(rng, view)
    # A door stands in a wall: nobody passes it.
    while meaning == "pass" and thing.endswith("door"):
        thing = f"{rng.choice(COLOURS)} {rng.choice([k for k in KINDS if k != 'door'])}"
    return thing


def _colour(rng: np.random.Generator, view: tuple[VisibleObject, ...], phrasing: Phrasing) -> Saying:
    seen = [t.kind for t in view if t.is_visible]
    kind = str(rng.choice(seen)) if seen and rng.random() < 0.85 else str(rng.choice(KINDS))
    text = _worded(rng, phrasing, kind)
    return Saying(Goal(text, "ask", kind, _QUESTIONS[phrasing.meaning]), phrasing)


def _nearer(rng: np.random.Generator, view: tuple[VisibleObject, ...], phrasing: Phrasing) -> Saying:
    thing, other = _two(rng, view)
    text = _worded(rng, phrasing, thing, other)
    return Saying(Goal(text, "ask", thing, "nearer", other=other), phrasing)


def _two(rng: np.random.Generator, view: tuple[VisibleObject, ...]) -> tuple[str, str]:
    """Draw two different objects, both in view if possible."""
    names = sorted({t.name for t in view if t.is_visible})
    if len(names) >= 2 and rng.random() < 0.9:
        one, other = rng.choice(names, 2, replace=False).tolist()
        return one, other
    one = teacher.choose_thing(rng, view)
    other = f"{rng.choice(COLOURS)} {rng.choice(KINDS)}"
    while other == one:
        other = f"{rng.choice(COLOURS)} {rng.choice(KINDS)}"
    return one, other


def _picked(rng: np.random.Generator, view: tuple[VisibleObject, ...], phrasing: Phrasing) -> Saying:
    kinds = [t.kind for t in view if t.is_visible]
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    kind = "" if rng.random() < ANY_SHARE else str(rng.choice(twice or kinds or list(KINDS)))
    return picked(rng, phrasing, kind)


def picked(rng: np.random.Generator, phrasing: Phrasing, kind: str) -> Saying:
    """Fill an instruction about one of several of a kind, or of all if it is empty: the nearest, …"""
    text = _worded(rng, phrasing, kind) if kind else phrasing.text.format(k="thing", ks="things")
    return Saying(Goal(text, "goto", kind, pick=_PICKS[phrasing.meaning]), phrasing)


def _related(rng: np.random.Generator, view: tuple[VisibleObject, ...], phrasing: Phrasing) -> Saying:
    thing, other = _two(rng, view)
    kind = thing.rsplit(maxsplit=1)[-1]
    text = _worded(rng, phrasing, kind, other)
    goal = Goal(text, "goto", kind, relation=_RELATIONS[phrasing.meaning], other=other)
    return Saying(goal, phrasing)


def _side(rng: np.random.Generator) -> str:
    return "left" if rng.random() < 0.5 else "right"


def motion(rng: np.random.Generator, phrasing: Phrasing) -> Saying:
    """Fill the phrasing of a plain motion or of waiting; what is too much becomes a refusal."""
    name, tongue = phrasing.meaning.removeprefix(f"{phrasing.tongue}_"), phrasing.tongue
    side, slots = _side(rng), {}
    if "s" in phrasing.slots:
        slots["s"] = lexicon.side_name(tongue, side)
    sign = -1 if name in ("back", "back_some") or ("s" in slots and side == "right") else 1
    call, quantity, fixed = _CALLS[name]
    if fixed is not None:
        amount = Amount("", fixed, quantity)
    else:
        slot = next(iter(phrasing.slots & {"n", "d", "a", "t"}))
        amount = draw_amount(rng, quantity, vague=slot == "d", tongue=tongue)
        slots[slot] = amount.text
    text = phrasing.text.format(**slots)
    if amount.is_too_much:
        verb = "too_long" if quantity == "duration" else "too_far"
        return Saying(Goal(text, verb), phrasing, (amount,))  # type: ignore[arg-type]
    action = " ".join(f"{call} ( {number} )" for number in amount.numbers(sign))
    return Saying(Goal(text, "act", action=action), phrasing, (amount,))


_CALLS: Mapping[str, tuple[str, Quantity, Fraction | None]] = {
    "forward": ("forward", "distance", None),
    "back": ("forward", "distance", None),
    "strafe": ("strafe", "distance", None),
    "turn": ("turn", "angle", None),
    "wait": ("wait", "duration", None),
    "forward_some": ("forward", "distance", SOME["forward_some"]),
    "back_some": ("forward", "distance", SOME["back_some"]),
    "strafe_some": ("strafe", "distance", SOME["strafe_some"]),
    "turn_side": ("turn", "angle", SIDE_DEG),
    "turn_bit": ("turn", "angle", BIT_DEG),
    "turn_around": ("turn", "angle", ROUND_DEG),
    "full_turn": ("turn", "angle", 2 * ROUND_DEG),
}
"""Meaning of a plain motion: the action, what it is measured in, and how much if nothing is said."""


def _foreign(rng: np.random.Generator, view: tuple[VisibleObject, ...], phrasing: Phrasing) -> Saying:
    name = phrasing.meaning.removeprefix(f"{phrasing.tongue}_")
    if name == "stop":
        return Saying(Goal(phrasing.text, "act", action="stop ( )"), phrasing)
    if name == "goto":
        thing = _thing(rng, view, "goto")
        goal = Goal("", "goto", thing, may_ask=" " not in thing)
        return Saying(replace(goal, text=_worded(rng, phrasing, thing)), phrasing)
    return motion(rng, phrasing)


def _in_words(rng: np.random.Generator, view: tuple[VisibleObject, ...], phrasing: Phrasing) -> Saying:
    """What is answered in words alone: negated, unsafe, impossible, meaningless, another language."""
    thing = teacher.choose_thing(rng, view)
    other = f"{rng.choice(COLOURS)} {rng.choice(KINDS)}"
    slots = {"s": _side(rng), "c": lexicon.colour_name(rng, str(rng.choice(COLOURS)))}
    slots["d"] = slots["n"] = draw_amount(rng, "distance").text
    slots["a"] = draw_amount(rng, "angle").text
    text = phrasing.text
    while "{u}" in text:
        text = text.replace("{u}", lexicon.invented_word(rng, is_taught=phrasing.part == "taught"), 1)
    worded = _worded(rng, replace(phrasing, text=text), thing, other, **slots)
    verb = {"meaningless": "unknown", "other_language": "unknown"}.get(phrasing.meaning, phrasing.meaning)
    return Saying(Goal(worded, verb), phrasing)  # type: ignore[arg-type]


_STRANGE_PLACES = ("goto", "goto_behind", "face", "find", "follow", "pass", "goto_nearest", "goto_leftmost")
_FUNCTION_WORDS = ("the", "a", "of", "to", "is", "and", "in", "on", "it", "that", "my", "for", "with", "was")


def _strange(rng: np.random.Generator, view: tuple[VisibleObject, ...]) -> Saying:
    """Say something of taught strange words: an unknown thing, an unknown deed, or neither head nor tail.

    A known command about an unknown thing, and an unknown deed with a known thing, differ from what is to be
    done by one word: so that word must be read.
    """
    kind = int(rng.choice(4, p=(0.35, 0.25, 0.2, 0.2)))
    noun = lexicon.invented_word(rng)
    if kind == 0:
        meaning = str(rng.choice(_STRANGE_PLACES))
        told = [p for p in by_meaning()[meaning] if p.slots <= {"x", "k", "ks", "s"} and p.slots - {"s"}]
        phrasing = told[int(rng.integers(len(told)))]
        if rng.random() < 0.3:
            noun = f"{lexicon.colour_name(rng, str(rng.choice(COLOURS)))} {noun}"
        slots = {"x": noun, "k": noun, "ks": lexicon.plural(noun), "s": _side(rng)}
        return Saying(Goal(phrasing.text.format(**slots), "unknown"), phrasing)
    if kind == 3:
        drawn = [_any_word(rng) for _ in range(int(rng.integers(1, 7)))]
        return Saying(Goal(" ".join(drawn), "unknown"), Phrasing("meaningless", "short", ""))
    deed = lexicon.strange_word(rng, "verbs")
    if kind == 1:
        noun = lexicon.object_name(rng, teacher.choose_thing(rng, view))
    text = f"{deed} {rng.choice(('the', 'the', 'a', 'my', 'this', 'that', 'some'))} {noun}"
    return Saying(Goal(text, "impossible"), Phrasing("impossible", "command", ""))


def _any_word(rng: np.random.Generator) -> str:
    if rng.random() < 0.3:
        return str(rng.choice(_FUNCTION_WORDS))
    return lexicon.invented_word(rng) if rng.random() < 0.7 else lexicon.strange_word(rng, "verbs")


def _reply(rng: np.random.Generator, view: tuple[VisibleObject, ...], phrasing: Phrasing) -> Saying:
    """The operator's word after the robot has asked which one is meant."""
    kinds = [t.kind for t in view if t.is_visible]
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    kind = str(rng.choice(twice or kinds or list(KINDS)))
    colours = [t.colour for t in view if t.is_visible and t.kind == kind] or list(COLOURS)
    colour = str(rng.choice(colours))
    asked = _taught(rng, "goto" if rng.random() < 0.8 else "face")
    first = _worded(rng, asked, kind)
    reply = _worded(rng, phrasing, kind, c=lexicon.colour_name(rng, colour))
    goal = Goal(f"{first} . {reply}", "goto" if asked.meaning == "goto" else "face", kind)
    if phrasing.meaning == "reply_none":
        return Saying(replace(goal, verb="negated"), phrasing)
    if phrasing.meaning == "reply_colour":
        return Saying(replace(goal, thing=f"{colour} {kind}"), phrasing)
    return Saying(replace(goal, pick=_REPLIES[phrasing.meaning]), phrasing)


def _taught(rng: np.random.Generator, meaning: str) -> Phrasing:
    """Draw a taught command."""
    found = [p for p in by_meaning()[meaning] if p.voice == "command"]
    return found[int(rng.integers(len(found)))]


_PLAIN = (
    *("forward", "back", "strafe", "turn", "turn_side", "turn_around", "wait", "hello", "stretch"),
    *("sit", "stand_down"),
)


def _sequence(rng: np.random.Generator, view: tuple[VisibleObject, ...], phrasing: Phrasing) -> Saying:
    """Two or three parts: plain actions; or an object first, or last, and plain actions for the rest."""
    count = 2 if phrasing.meaning == "two" else 3
    at = {0: 0, 1: count - 1}.get(int(rng.choice(3, p=[0.4, 0.15, 0.45])))
    parts: list[Saying] = []
    for i in range(count):
        if i == at:
            meaning = str(rng.choice(("goto", "face"))) if i == 0 else "goto"
        else:
            pool = [m for m in _PLAIN if m not in LAST_GESTURES or i == count - 1]
            meaning = str(rng.choice(pool))
        parts.append(_filled(rng, view, _taught(rng, meaning)))
    names = ("first", "second", "third")
    text = phrasing.text.format(**{n: p.goal.text for n, p in zip(names, parts, strict=False)})
    amounts = tuple(amount for part in parts for amount in part.amounts)
    if refusal := next((p.goal for p in parts if p.goal.verb in teacher.ONLY_WORDS), None):
        return Saying(replace(refusal, text=text), phrasing, amounts)
    actions = [p.goal.action for p in parts if p.goal.verb == "act"]
    if at is None:
        return Saying(Goal(text, "act", action=" ".join(actions)), phrasing, amounts)
    goal = replace(parts[at].goal, text=text)
    where = {"action": " ".join(actions)} if at == 0 else {"before": " ".join(actions)}
    return Saying(replace(goal, **where), phrasing, amounts)  # type: ignore[arg-type]


_SPECIAL: Mapping[str, Fill] = {
    **dict.fromkeys(_PICKS, _picked),
    **dict.fromkeys(_RELATIONS, _related),
    **dict.fromkeys(NO_MOTION, _in_words),
    **dict.fromkeys((*_REPLIES, "reply_colour", "reply_none"), _reply),
    **dict.fromkeys(("what_colour", "how_many"), _colour),
    **dict.fromkeys(("two", "three"), _sequence),
    "nearer": _nearer,
}
"""Meanings with a way of their own to be filled."""
