"""Settings of data generation, training and evaluation, as the command line fills them in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from vlm_spec_decode.train.instructions import held_out

Role: TypeAlias = Literal["target", "draft"]

Growth: TypeAlias = tuple[tuple[float, int], ...]
"""Shares of a training's steps, and how many layers are trained from there on; in rising order, from 0."""

HELD_OUT_SEED = held_out().first_scene_seed
"""Scene seeds from here on are for evaluation and never trained on."""


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Frames: `num_scenes` rooms seen from `poses` places each."""

    out: Path = Path("data/frames")
    num_scenes: int = 7000
    poses: int = 8
    num_objects: tuple[int, int] = (2, 6)
    first_seed: int = 0
    workers: int = 2


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One model's training.

    `dialogues` share one image in one sequence. The learning rate falls over the last `decay_share` of
    all `steps`. `eye` is the checkpoint of another model whose trained vision tower is taken over; the draft
    shares the target's. `start` is a checkpoint to begin from, whose steps count, or a finished model's
    folder, whose steps do not. `stop_after` ends a run at that step, to be gone on with later. `distil` names
    the folder of the target whose distribution a draft learns instead of the teacher's answers. `device` auto
    is a GPU if there is one; `precision` auto is what is faster there, measured once and kept in the
    checkpoint. With several `processes` each draws `batch` images a step, and their gradients are averaged.
    `growth` says from which share of the steps on how many layers of the language part are trained; without
    it all are, always.
    """

    role: Role
    data: Path = Path("data/frames")
    out: Path = Path("runs/target")
    eye_steps: int = 4000
    steps: int = 10000
    batch: int = 8
    dialogues: int = 4
    peak_rate: float = 3e-3
    seed: int = 0
    threads: int = 1
    checkpoint_every: int = 200
    decay_share: float = 0.4
    stop_after: int | None = None
    log_every: int = 100
    eye: Path | None = None
    start: Path | None = None
    distil: Path | None = None
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    processes: int = 1
    growth: Growth = ()


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The training of one model of the language-only pair.

    A step has `batch` dialogues about rooms drawn for it. `start` names a folder whose language part is
    where to begin, such as that of the pair that sees. `distil` names the folder of the
    target whose own answers a draft learns. The rest is as in `TrainConfig`.
    """

    role: Role
    out: Path = Path("runs/text_target")
    steps: int = 2000
    batch: int = 32
    peak_rate: float = 1.0e-3
    seed: int = 0
    threads: int = 1
    checkpoint_every: int = 20
    decay_share: float = 0.8
    stop_after: int | None = None
    log_every: int = 20
    start: Path | None = None
    distil: Path | None = None
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


@dataclass(frozen=True, slots=True)
class ExitsConfig:
    """Exits of a finished target at `shares` of its depth, learned from `batches` batches."""

    target: Path
    data: Path = Path("data/frames")
    shares: tuple[float, ...] = (0.25, 0.5, 0.75)
    batches: int = 120
    batch: int = 8
    dialogues: int = 6
    steps: int = 1500
    seed: int = 0
    threads: int = 1
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """Held-out seeds: `episodes` closed-loop missions of all kinds, `declined` ones that must be refused, and
    `frames` open-loop answers."""

    target: Path
    draft: Path | None
    episodes: int = 50
    frames: int = 100
    declined: int = 0
    first_seed: int = HELD_OUT_SEED
    max_answers: int = 24
    out: Path = Path("out/evaluate")
    threads: int = 1


def recipe(role: Role, **given: Any) -> TrainConfig:
    """Return the settings with which two cores make a model of `role` in two hours, `given` ones changed."""
    defaults: dict[Role, dict[str, Any]] = {
        "target": {"eye_steps": 6000, "steps": 3500, "dialogues": 6, "growth": ((0.0, 4), (0.7, 12))},
        "draft": {"eye_steps": 0, "steps": 1700, "dialogues": 6},
    }
    return TrainConfig(role, **{**defaults[role], **given})


def text_recipe(role: Role, **given: Any) -> TextConfig:
    """Return the settings of a model of the language-only pair, `given` ones changed."""
    defaults: dict[str, Any] = {
        "target": {"out": Path("runs/text_target")},
        "draft": {"out": Path("runs/text_draft")},
    }[role]
    return TextConfig(role, **{**defaults, **given})
