"""`vsd record`: the topics of running nodes, as the bytes that were sent, in a bag that standard tools open.

The command alone: subscriptions and writing are in `ros.recorder`, which is imported when the command runs.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vlm_spec_decode.bags.recording import Note, RecordConfig, Recorded

LOOK_S = 0.2


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turn SIGINT, SIGTERM and SIGHUP into an event while the block runs, so that the bag is completed."""
    asked = threading.Event()

    def note(_number: int, _frame: FrameType | None) -> None:
        asked.set()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # Under nohup a closed terminal is to be ignored, and stays so.
    wanted = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    old = {number: signal.signal(number, note) for number in wanted}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def run(config: RecordConfig, note: Note, should_stop: Callable[[], bool]) -> Recorded:
    """Record until `should_stop` or the duration is over; return messages per topic."""
    from vlm_spec_decode.bags.recording import Recorded
    from vlm_spec_decode.ros.recorder import Recorder

    recorder = Recorder(config, note)
    until_s = time.monotonic() + config.duration_s if config.duration_s else float("inf")
    try:
        while not should_stop() and time.monotonic() < until_s:
            recorder.look()
            recorder.spin(LOOK_S)
    finally:
        recorder.close()
    return Recorded(dict(recorder.counts), recorder.missed())


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--topic", "topics", multiple=True, help="Name or pattern such as '*/image*'; default: ours.")
@click.option("--all", "everything", is_flag=True, help="Every topic whose messages are installed.")
@click.option("--storage", type=click.Choice(["mcap", "sqlite3"]), default="mcap", show_default=True)
@click.option(
    "--duration", "duration_s", type=click.FloatRange(0), default=0.0, help="Seconds; 0: until Ctrl-C."
)
@click.option("--domain", type=click.IntRange(0, 232), default=None, help="Default: ROS_DOMAIN_ID, else 0.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def record(
    out: Path,
    topics: tuple[str, ...],
    everything: bool,
    storage: str,
    duration_s: float,
    domain: int | None,
    as_json: bool,
) -> int:
    """Record camera, instructions, answers, plans and motion of running nodes into the new bag OUT."""
    from vlm_spec_decode.bags.recording import OURS, RecordConfig
    from vlm_spec_decode.cli.console import ros_domain

    chosen = ("*",) if everything else topics or OURS
    config = RecordConfig(out, ros_domain() if domain is None else domain, chosen, storage, duration_s)
    with interruptible() as asked:
        click.echo(f"recording into {out}; Ctrl-C ends", err=True)
        found = run(config, lambda text: click.echo(text, err=True), asked.is_set)
    counts, missed = found.counts, found.missed
    if missed:
        named = ", ".join(f"{count} on {topic}" for topic, count in sorted(missed.items()))
        click.echo(f"warning: {sum(missed.values())} messages were missed: {named}", err=True)
    if as_json:
        total = {"bag": str(out), "messages": sum(counts.values()), "missed": sum(missed.values())}
        click.echo(json.dumps(total | {"topics": counts, "missed_topics": missed}))
    else:
        for topic, count in sorted(counts.items()):
            click.echo(f"{count:7} {topic}")
        click.echo(f"{sum(counts.values())} messages in {out}")
    return 0 if counts else 1
