"""Measures the figures of the main job and holds each against its bar.

    python benchmarks/main_job.py --quick          smaller counts, under 10 minutes on 2 cores
    python benchmarks/main_job.py --out FILE       in full, for the README's table (benchmarks/tables.py)

Models and missions run in virtual time, the robot's part over real DDS, the link's over real sockets with
CURVE. Ends with one JSON line `{"figures": [{"name", "value", "bar", "holds"}, …], …}`. A figure that falls
short is printed as it is.
"""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from link import measure_link
from robot import measure_robot

from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.demo.processes import Processes
from vlm_spec_decode.models.loader import shipped
from vlm_spec_decode.train.config import EvaluateConfig
from vlm_spec_decode.train.evaluate import run_evaluate


@dataclass(frozen=True)
class Figure:
    """One measured figure. `bar` is None where there is none; `over` says what it was measured on."""

    name: str
    value: float
    bar: str | None = None
    holds: bool | None = None
    over: str = ""


def at_least(name: str, value: float, bar: float, over: str) -> Figure:
    """A figure that must reach its bar."""
    return Figure(name, round(value, 4), f">= {bar:g}", value >= bar, over)


def at_most(name: str, value: float, bar: float, over: str) -> Figure:
    """A figure that must not exceed its bar."""
    return Figure(name, round(value, 4), f"<= {bar:g}", value <= bar, over)


@contextmanager
def processes(folder: Path) -> Iterator[Processes]:
    """A supervisor whose processes end with the block."""
    environment = {"OMP_NUM_THREADS": "1", "MUJOCO_GL": "osmesa", "PYTHONUNBUFFERED": "1"}
    with Processes(folder / "logs", WallClock(), environment) as supervisor:
        yield supervisor


def models(target: Path, draft: Path, episodes: int, frames: int, out: Path) -> list[Figure]:
    """Missions in held-out rooms, and the draft's agreement with the target's own answers."""
    found = run_evaluate(EvaluateConfig(target, draft, episodes, frames, out=out))
    rooms, asked = f"{episodes} held-out rooms", f"{frames} held-out frames"
    return [
        at_least("go_to_success", found["mission_success"], 0.80, rooms),
        Figure("go_to_reached", found["mission_reached"], over=rooms),
        Figure("missions_with_collision", found["mission_collisions"], over=rooms),
        at_least("draft_acceptance_greedy", found["acceptance"], 0.80, asked),
        Figure("mean_accepted_of_8", round(found["mean_accepted_of_8"], 3), over=asked),
        Figure("answer_tokens_mean", round(found["answer_tokens_mean"], 1), over=asked),
    ]


def robot(repeats: int, folder: Path) -> list[Figure]:
    """Accuracy and stops of the executor over the robot's own DDS services."""
    with processes(folder) as supervisor:
        found = measure_robot(supervisor, folder, repeats)
    over = f"{repeats} repeats over DDS, largest"
    return [
        at_most("forward_1_6_error_m", max(found.forward_errors_m), 0.1, over),
        at_most("turn_20_error_deg", max(found.turn_errors_deg), 3.0, over),
        at_most("watchdog_silence_to_stop_s", max(found.watchdog_s), 0.3, over),
        Figure("watchdog_stop_to_standstill_s", round(max(found.watchdog_standstill_s), 3), over=over),
        Figure("estop_call_to_stop_commanded_ms", round(1e3 * max(found.estop_s), 2), over=over),
        Figure("estop_stop_to_standstill_s", round(max(found.estop_standstill_s), 3), over=over),
        Figure("estop_distance_m", round(max(found.estop_distance_m), 3), over=over),
    ]


def link(target: Path, draft: Path, answers: int, folder: Path) -> list[Figure]:
    """Two strategies over one encrypted socket: the same tokens, and what each costs."""
    with processes(folder) as supervisor:
        found = measure_link(supervisor, folder, str(target), str(draft), answers)
    over = f"{answers} answers over CURVE on loopback"
    return [
        at_least("same_tokens_as_autoregressive", found.same, 1.0, over),
        Figure(
            "speculative_over_autoregressive_time", round(found.time_ratio, 3), over=f"{over}, wall, one run"
        ),
        Figure("speculative_target_passes_share", round(found.pass_ratio, 3), over=over),
        at_most("image_crossings_per_answer", found.image_crossings, 1.0, over),
        Figure("uplink_bytes_per_round", round(found.uplink_per_round, 1), over=f"{over}, before encryption"),
    ]


def table(figures: list[Figure]) -> str:
    """Return the figures as text that a person reads."""
    lines = [f"{'figure':40} {'value':>10}  {'bar':>8}  holds  over"]
    for f in figures:
        holds = "-" if f.holds is None else "yes" if f.holds else "NO"
        lines.append(f"{f.name:40} {f.value:>10g}  {f.bar or '-':>8}  {holds:5}  {f.over}")
    return "\n".join(lines)


def provenance(quick: bool) -> dict[str, object]:
    """Say when, where and of which commit."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "benchmark": "main_job",
        "quick": quick,
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
    }


@click.command()
@click.option("--quick", is_flag=True, help="Smaller counts: 15 rooms, 30 frames, 3 repeats, 10 answers.")
@click.option(
    "--target", type=click.Path(path_type=Path), help="Checkpoint folder; default: the shipped one."
)
@click.option("--draft", type=click.Path(path_type=Path), help="Checkpoint folder; default: the shipped one.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the JSON here.")
def main(quick: bool, target: Path | None, draft: Path | None, out: Path | None) -> None:
    """Measure, print, and end with one JSON line."""
    target, draft = target or shipped("target"), draft or shipped("draft")
    episodes, frames, repeats, answers = (15, 30, 3, 10) if quick else (50, 100, 20, 50)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = [
            *robot(repeats, folder / "robot"),
            *link(target, draft, answers, folder / "link"),
            *models(target, draft, episodes, frames, folder / "models"),
        ]
    print(table(figures))
    document = json.dumps({"figures": [asdict(f) for f in figures], **provenance(quick)})
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(document + "\n")
    print(document)


if __name__ == "__main__":
    main()
