"""The commands `vsd train …`: options in, one config out; the work is elsewhere and imported when wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from vlm_spec_decode.core.assets import ASSETS

FOLDER = click.Path(path_type=Path)
DEVICE = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto is a GPU if there is one; else cpu, cuda, cuda:1.",
)


@click.group()
def train() -> None:
    """Make the shipped models: frames, target, draft, and what they are worth."""


def _finish(figures: dict[str, Any], as_json: bool) -> None:
    for key, value in figures.items():
        click.echo(f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}")
    if as_json:
        click.echo(json.dumps(figures))


@train.command()
@click.option("--out", type=FOLDER, default=None, show_default="data/frames, data/walks")
@click.option("--scenes", type=click.IntRange(1), default=7000, show_default=True)
@click.option("--poses", type=click.IntRange(1), default=8, show_default=True, help="Frames in each scene.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
@click.option(
    "--from-bags", "bags", type=FOLDER, multiple=True, help="Bag of a walk with labels; may be repeated."
)
@click.option("--image-topic", default="", help="With --from-bags; default: the first found by type.")
@click.option("--instructions", type=FOLDER, help="With --from-bags: CSV or YAML of instructions and labels.")
@click.option("--every", "every_s", type=click.FloatRange(0), default=1.0, help="With it: s between frames.")
@click.option("--json", "as_json", is_flag=True, help="End with one JSON line.")
def data(out: Path | None, scenes: int, poses: int, workers: int, as_json: bool, **walks: Any) -> None:
    """Render training frames, or take those of recorded walks; rendering goes on where it stopped."""
    if walks["bags"]:
        return _finish(_walks(out or Path("data/walks"), **walks), as_json)
    from vlm_spec_decode.train.config import DataConfig
    from vlm_spec_decode.train.frames import run_data

    return _finish(run_data(DataConfig(out or Path("data/frames"), scenes, poses, workers=workers)), as_json)


def _walks(
    out: Path, bags: tuple[Path, ...], image_topic: str, instructions: Path | None, every_s: float
) -> dict[str, Any]:
    from vlm_spec_decode.bags.events import Topics
    from vlm_spec_decode.bags.questions import AskPlan, read_spoken
    from vlm_spec_decode.train.recorded_data import RecordedDataConfig, run_walks

    plan = AskPlan(spoken=read_spoken(instructions) if instructions else (), every_s=every_s)
    return run_walks(RecordedDataConfig(bags, out, Topics(image=image_topic), plan))


def _model_options(command: Any) -> Any:
    options = [
        click.option(
            "--text", is_flag=True, help="Of the language-only pair: rooms told in words, no frames."
        ),
        click.option("--data", type=FOLDER, default=None, show_default="data/frames"),
        click.option("--eye-steps", type=click.IntRange(0), default=None, help="Steps of the eye alone."),
        click.option(
            "--steps", type=click.IntRange(0), default=None, help="Steps of the mouth over the finished eye."
        ),
        click.option("--eye", type=FOLDER, default=None, help="Checkpoint whose trained eye to take over."),
        click.option(
            "--start",
            type=FOLDER,
            default=None,
            help="Checkpoint or model's folder to begin from; with --text its language part is taken.",
        ),
        click.option(
            "--batch", type=click.IntRange(1), default=None, help="Images, or dialogues, of a step."
        ),
        click.option("--peak-rate", type=click.FloatRange(0), default=None, help="Highest learning rate."),
        click.option("--seed", type=int, default=0, show_default=True),
        click.option("--threads", type=click.IntRange(1), default=1, show_default=True),
        click.option(
            "--processes",
            type=click.IntRange(1),
            default=None,
            show_default="1",
            help="Draw batches in so many, each on a core of its own, and average the gradients.",
        ),
        DEVICE,
        click.option(
            "--precision",
            type=click.Choice(["auto", "float32", "bfloat16"]),
            default="auto",
            show_default=True,
            help="Of the forward pass; auto measures which is faster here.",
        ),
        click.option("--json", "as_json", is_flag=True, help="End with one JSON line."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@train.command()
@click.option("--out", type=FOLDER, default=None, show_default="runs/target, runs/text_target")
@_model_options
def target(**options: Any) -> None:
    """Train the target on the teacher's answers; goes on where an interrupted run stopped."""
    _train("target", **options)


@train.command()
@click.option("--out", type=FOLDER, default=None, show_default="runs/draft, runs/text_draft")
@click.option("--distil", type=FOLDER, default=None, help="Folder of the target whose answers to learn.")
@_model_options
def draft(**options: Any) -> None:
    """Train the draft on the teacher's answers, or on a target's with --distil."""
    _train("draft", **options)


def _train(role: Any, text: bool, as_json: bool, **options: Any) -> None:
    given = {key: value for key, value in options.items() if value is not None}
    if text:
        from vlm_spec_decode.train.config import text_recipe
        from vlm_spec_decode.train.text import run_text

        if blind := sorted({"data", "eye", "eye_steps", "processes"} & set(given)):
            raise click.UsageError(f"--{blind[0].replace('_', '-')} is for models that see, not for --text")
        return _finish(run_text(text_recipe(role, **given)), as_json)
    from vlm_spec_decode.train.config import recipe
    from vlm_spec_decode.train.loop import run_train

    return _finish(run_train(recipe(role, **{"out": Path(f"runs/{role}"), **given})), as_json)


@train.command()
@click.option(
    "--target", type=FOLDER, default=Path("runs/target"), show_default=True, help="Folder[,option=value…]."
)
@click.option(
    "--data",
    type=FOLDER,
    default=Path("data/frames"),
    show_default=True,
    help="Frames, for a model of `vsd train target`; others learn from their own answers.",
)
@click.option(
    "--batches", type=click.IntRange(8), default=120, show_default=True, help="Of 8 frames or answers each."
)
@click.option("--steps", type=click.IntRange(1), default=1500, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="End with one JSON line.")
def exits(as_json: bool, **options: Any) -> None:
    """Train and calibrate early exits for a finished target; the target itself stays as it is."""
    from vlm_spec_decode.train.config import ExitsConfig
    from vlm_spec_decode.train.exits import run_exits

    _finish(run_exits(ExitsConfig(**options)), as_json)


@train.command()
@click.option("--target", type=FOLDER, default=ASSETS / "target", show_default="the shipped one")
@click.option("--draft", type=FOLDER, default=ASSETS / "draft", show_default="the shipped one")
@click.option("--episodes", type=click.IntRange(0), default=100, show_default=True)
@click.option("--declined", type=click.IntRange(0), default=40, show_default=True, help="To be refused.")
@click.option("--frames", type=click.IntRange(0), default=100, show_default=True)
@click.option("--first-seed", type=click.IntRange(0), default=None, help="Held-out seeds begin at 1000000.")
@click.option("--out", type=FOLDER, default=Path("out/evaluate"), show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="End with one JSON line.")
def evaluate(as_json: bool, first_seed: int | None, **options: Any) -> None:
    """Measure a pair in held-out rooms: episodes of all kinds, what it declines, acceptance, answers."""
    from vlm_spec_decode.train.config import HELD_OUT_SEED, EvaluateConfig
    from vlm_spec_decode.train.evaluate import run_evaluate

    seed = HELD_OUT_SEED if first_seed is None else first_seed
    _finish(run_evaluate(EvaluateConfig(first_seed=seed, **options)), as_json)
