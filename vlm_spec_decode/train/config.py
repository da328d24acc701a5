"""Settings of data generation, training and evaluation, as the command line fills them in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from vlm_spec_decode.core.config import ASSETS, same_as, setting, settings_of

Role: TypeAlias = Literal["target", "draft"]
Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("auto", "float32", "bfloat16")

Description: TypeAlias = Literal["full", "brief"]
DESCRIPTIONS: tuple[Description, ...] = ("full", "brief")

Growth: TypeAlias = tuple[tuple[float, int], ...]
"""(fraction of the steps, number of layers trained from there on), in rising order, beginning at 0."""


def held_out_seed() -> int:
    """Return the first scene seed reserved for evaluation; no training uses it or a higher one."""
    from vlm_spec_decode.train.instructions import held_out

    return held_out().first_scene_seed


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Frames: `num_scenes` rooms seen from `poses` places each."""

    out: Path = setting(Path("data/frames"), "Folder of the frames; rendering goes on where it stopped.")
    num_scenes: int = setting(7000, "Rooms.", 1)
    poses: int = setting(8, "Frames in each room.", 1)
    num_objects: tuple[int, int] = (2, 6)
    first_seed: int = 0
    workers: int = setting(2, "Processes that render.", 1)


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """The subword tokenizer, trained on dialogues about `rooms` rooms."""

    out: Path = setting(Path("out/tokenizer.json"), "File of the tokenizer.")
    size: int = setting(2000, "Largest number of ids.", 262, 2000)
    rooms: int = setting(300, "Rooms whose dialogues it is trained on.", 1)
    seed: int = setting(0, "Seed of rooms and dialogues.")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One model's training.

    `dialogues` share one image in one sequence. The learning rate falls over the last `decay_share` of
    all `steps`. `eye` is the checkpoint or finished model's folder whose trained vision tower is taken
    over; the draft shares the target's. `start` is a checkpoint to begin from, whose steps count, or a
    finished model's folder, whose steps do not. `stop_after` ends a run at that step; it can be resumed.
    `distil` names the folder of the target whose distribution a draft learns instead of the teacher's
    answers. `device` auto is a GPU if there is one; `precision` auto is what is faster there, measured
    once and kept in the checkpoint. With several `processes` each draws `batch` images a step, and their
    gradients are averaged. `growth` says from which share of the steps on how many layers of the language
    part are trained; without it all are, always. With a `tokenizer`, a file of `vsd train tokenizer`, the
    dialogues are those of the phrasings, answered with this `description` and straight ways of up to
    `max_step_m`; without one, those of `instructions` with a word-level tokenizer. The recipes take the
    tokenizer of the models that ship.
    """

    role: Role
    data: Path = setting(Path("data/frames"), "Folder of the frames.")
    out: Path = setting(Path("runs/target"), "Folder of checkpoints and the finished model.")
    eye_steps: int = setting(4000, "Steps of the vision tower alone.", 0)
    steps: int = setting(10000, "Steps of the language model over the finished vision tower.", 0)
    batch: int = setting(8, "Images of a step.", 1)
    dialogues: int = 4
    peak_rate: float = setting(3e-3, "Highest learning rate.", 0)
    seed: int = setting(0, "Seed of weights and batches.")
    threads: int = setting(1, "Threads of the computation.", 1)
    checkpoint_every: int = 200
    decay_share: float = 0.4
    stop_after: int | None = None
    log_every: int = 100
    eye: Path | None = setting(None, "Checkpoint or model's folder whose trained vision tower to take over.")
    start: Path | None = setting(
        None, "Checkpoint or model's folder to begin from; with --text its language part is taken."
    )
    distil: Path | None = setting(None, "Folder of the target whose answers to learn.")
    device: str = setting("auto", "auto is a GPU if there is one; else cpu, cuda, cuda:1.")
    precision: Precision = setting(
        "auto", "Of the forward pass; auto measures which is faster here.", one_of=PRECISIONS
    )
    processes: int = setting(
        1, "Draw batches in so many, each on a core of its own, and average the gradients.", 1
    )
    growth: Growth = ()
    tokenizer: Path | None = setting(
        None, "File of `vsd train tokenizer`, which goes with people's own phrasings."
    )
    description: Description = setting(
        "full",
        "Name all objects before acting, or those alone that the instruction may mean.",
        one_of=DESCRIPTIONS,
    )
    max_step_m: float = setting(3.0, "Longest way planned at once where it is free.", 1.5, 3.0)


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The training of one model of the language-only pair.

    A step has `batch` dialogues about rooms drawn for it. `start` names a folder whose language part is
    where to begin, such as that of the vision pair. `distil` names the folder of the
    target whose own answers a draft learns. The rest is as in `TrainConfig`.
    """

    role: Role
    out: Path = setting(Path("runs/text_target"), "Folder of checkpoints and the finished model.")
    steps: int = setting(2000, "Steps.", 0)
    batch: int = setting(32, "Dialogues of a step.", 1)
    peak_rate: float = setting(1.0e-3, "Highest learning rate.", 0)
    seed: int = same_as(TrainConfig, "seed")
    threads: int = same_as(TrainConfig, "threads")
    checkpoint_every: int = 20
    decay_share: float = 0.8
    stop_after: int | None = None
    log_every: int = 20
    start: Path | None = same_as(TrainConfig, "start")
    distil: Path | None = same_as(TrainConfig, "distil")
    device: str = same_as(TrainConfig, "device")
    precision: Precision = same_as(TrainConfig, "precision")
    tokenizer: Path | None = same_as(TrainConfig, "tokenizer")
    description: Description = same_as(TrainConfig, "description")
    max_step_m: float = same_as(TrainConfig, "max_step_m")


@dataclass(frozen=True, slots=True)
class ExitsConfig:
    """Exits of a finished target at `shares` of its depth, learned from `batches` batches."""

    target: Path = setting(Path("runs/target"), "Folder[,option=value…].")
    data: Path = setting(
        Path("data/frames"), "Frames, for a model of `vsd train target`; others learn from their own answers."
    )
    shares: tuple[float, ...] = (0.25, 0.5, 0.75)
    batches: int = setting(120, "Batches of 8 frames or answers each.", 8)
    batch: int = 8
    dialogues: int = 6
    steps: int = setting(1500, "Steps of each exit.", 1)
    seed: int = same_as(TrainConfig, "seed")
    threads: int = same_as(TrainConfig, "threads")
    device: str = same_as(TrainConfig, "device")


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """Held-out seeds: `episodes` closed-loop missions of all kinds, `declined` ones that must be refused, and
    `frames` open-loop answers."""

    target: Path = setting(ASSETS / "target", "Folder of the target.")
    draft: Path | None = setting(ASSETS / "draft", "Folder of the draft.")
    episodes: int = setting(100, "Missions of all kinds.", 0)
    frames: int = setting(100, "Open-loop answers.", 0)
    declined: int = setting(40, "Missions that must be refused.", 0)
    first_seed: int = field(default_factory=held_out_seed)
    max_answers: int = 24
    out: Path = setting(Path("out/evaluate"), "Folder of the figures.")
    threads: int = same_as(TrainConfig, "threads")


SHIPPED_TOKENIZER = ASSETS / "target" / "tokenizer.json"

_OWN_WORDS: dict[str, Any] = {"tokenizer": SHIPPED_TOKENIZER, "description": "brief"}

RECIPES: dict[Role, dict[str, Any]] = {
    "target": {
        **_OWN_WORDS,
        "out": Path("runs/target"),
        "eye_steps": 6000,
        "steps": 3500,
        "dialogues": 6,
        "growth": ((0.0, 4), (0.7, 12)),
    },
    "draft": {**_OWN_WORDS, "out": Path("runs/draft"), "eye_steps": 0, "steps": 1700, "dialogues": 6},
}
"""Settings that train a model of a role in two hours on two cores."""

TEXT_RECIPES: dict[Role, dict[str, Any]] = {
    "target": {"out": Path("runs/text_target")},
    "draft": {"out": Path("runs/text_draft")},
}
"""The same of the language-only pair."""


def recipe(role: Role, **given: Any) -> TrainConfig:
    """Return the settings of a model of the vision pair, with `given` ones replaced."""
    return TrainConfig(role, **{**RECIPES[role], **given})


def text_recipe(role: Role, **given: Any) -> TextConfig:
    """Return the settings of a model of the language-only pair, with `given` ones replaced."""
    return TextConfig(role, **{**TEXT_RECIPES[role], **given})


def shown_default(role: Role, name: str) -> str:
    """Return the default of a training's setting as text, with that of the language-only pair."""
    of_text = settings_of(TextConfig)
    seeing = RECIPES[role].get(name, settings_of(TrainConfig)[name].default)
    told = TEXT_RECIPES[role].get(name, of_text[name].default if name in of_text else None)
    if seeing == SHIPPED_TOKENIZER:
        return "that of the shipped models"
    return str(seeing) if told in (None, seeing) else f"{seeing}; {told} with --text"
