"""The commands `vsd train …`: options in, one config out. The modules that train are imported when needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from vlm_spec_decode.bags.settings import ReplaySettings
from vlm_spec_decode.core.config import settings_of
from vlm_spec_decode.core.load_progress import importing
from vlm_spec_decode.core.options import as_json, option, options
from vlm_spec_decode.train.config import (
    DataConfig,
    EvaluateConfig,
    ExitsConfig,
    Role,
    TokenizerConfig,
    TrainConfig,
    held_out_seed,
    recipe,
    shown_default,
    text_recipe,
)

Function = TypeVar("Function", bound=Callable[..., Any])

FOLDER = click.Path(path_type=Path)
FRAMES, WALKS = settings_of(DataConfig)["out"].default, Path("data/walks")


@click.group()
def train() -> None:
    """Make the shipped models: frames, target, draft, and what they are worth."""


def _finish(figures: dict[str, Any], as_json: bool) -> None:
    for key, value in figures.items():
        click.echo(f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}")
    if as_json:
        click.echo(json.dumps(figures))


@train.command()
@option(DataConfig, "out", type=FOLDER, default=None, show_default=f"{FRAMES}, or {WALKS} with --from-bags")
@option(DataConfig, "num_scenes", "--scenes")
@options(DataConfig, "poses", "workers")
@click.option(
    "--from-bags", "bags", type=FOLDER, multiple=True, help="Bag of a walk with labels; may be repeated."
)
@options(ReplaySettings, "image_topic", "instructions", instructions=FOLDER)
@option(ReplaySettings, "every_s", "--every")
@as_json
def data(out: Path | None, num_scenes: int, poses: int, workers: int, as_json: bool, **walks: Any) -> None:
    """Render training frames, or take those of recorded walks; rendering goes on where it stopped."""
    if walks["bags"]:
        return _finish(_walks(out or WALKS, **walks), as_json)
    from vlm_spec_decode.train.frames import run_data

    return _finish(run_data(DataConfig(out or FRAMES, num_scenes, poses, workers=workers)), as_json)


def _walks(
    out: Path, bags: tuple[Path, ...], image_topic: str, instructions: Path | None, every_s: float
) -> dict[str, Any]:
    from vlm_spec_decode.bags.events import Topics
    from vlm_spec_decode.bags.questions import AskPlan, read_instructions
    from vlm_spec_decode.train.recorded_data import RecordedDataConfig, run_recorded_data

    plan = AskPlan(spoken=read_instructions(instructions) if instructions else (), every_s=every_s)
    return run_recorded_data(RecordedDataConfig(bags, out, Topics(image=image_topic), plan))


@train.command()
@options(TokenizerConfig, "out", "size", "rooms", "seed", out=FOLDER)
@as_json
def tokenizer(as_json: bool, **given: Any) -> None:
    """Train the subword tokenizer of target and draft on the project's own phrasings and answers."""
    with importing():
        from vlm_spec_decode.train.tokenizer_data import run_tokenizer

    _finish(run_tokenizer(TokenizerConfig(**given)), as_json)


NAMES = {"eye_steps": "--vision-steps", "eye": "--vision-tower", "max_step_m": "--max-step"}
"""Options whose names differ from their fields."""


def _model_options(role: Role) -> Callable[[Function], Function]:
    """Return the options of a training as a decorator. Missing ones take the recipe's values."""

    def decorate(function: Function) -> Function:
        taught = ("out", "data", "tokenizer", "description", "max_step_m")
        chosen = ("eye_steps", "steps", "eye", "start", "batch", "peak_rate", "seed")
        for name in reversed((*taught, *chosen, "threads", "processes", "device", "precision")):
            shown = shown_default(role, name)
            changes: dict[str, Any] = {"default": None, "show_default": shown if shown != "None" else False}
            if settings_of(TrainConfig)[name].kind is Path:
                changes["type"] = FOLDER
            function = option(TrainConfig, name, NAMES.get(name, ""), **changes)(function)
        text = "Of the language-only pair: rooms told in words, no frames."
        return click.option("--text", is_flag=True, help=text)(as_json(function))

    return decorate


@train.command()
@_model_options("target")
def target(**given: Any) -> None:
    """Train the target on the teacher's answers; goes on where an interrupted run stopped."""
    _train("target", **given)


@train.command()
@option(TrainConfig, "distil", type=FOLDER)
@_model_options("draft")
def draft(**given: Any) -> None:
    """Train the draft on the teacher's answers, or on a target's with --distil."""
    _train("draft", **given)


def _train(role: Role, text: bool, as_json: bool, **options: Any) -> None:
    given = {key: value for key, value in options.items() if value is not None}
    if text:
        with importing():
            from vlm_spec_decode.train.text import run_text

        if blind := sorted({"data", "eye", "eye_steps", "processes"} & set(given)):
            flag = NAMES.get(blind[0], f"--{blind[0]}")
            raise click.UsageError(f"{flag} is for models that see, not for --text")
        return _finish(run_text(text_recipe(role, **given)), as_json)
    with importing():
        from vlm_spec_decode.train.loop import run_train

    return _finish(run_train(recipe(role, **given)), as_json)


@train.command()
@options(ExitsConfig, target=FOLDER, data=FOLDER)
@as_json
def exits(as_json: bool, **options: Any) -> None:
    """Train and calibrate early exits for a finished target; the target itself stays as it is."""
    with importing():
        from vlm_spec_decode.train.exits import run_exits

    _finish(run_exits(ExitsConfig(**options)), as_json)


@train.command()
@option(EvaluateConfig, "target", type=FOLDER, show_default="the shipped one")
@option(EvaluateConfig, "draft", type=FOLDER, show_default="the shipped one")
@options(EvaluateConfig, "episodes", "declined", "frames", "out", "threads", out=FOLDER)
@click.option("--first-seed", type=click.IntRange(0), default=None, help="Default: the first held-out seed.")
@as_json
def evaluate(as_json: bool, first_seed: int | None, **given: Any) -> None:
    """Measure a pair in held-out rooms: episodes of all kinds, what it declines, acceptance, answers."""
    with importing():
        from vlm_spec_decode.train.evaluate import run_evaluate

    seed = held_out_seed() if first_seed is None else first_seed
    _finish(run_evaluate(EvaluateConfig(first_seed=seed, **given)), as_json)
