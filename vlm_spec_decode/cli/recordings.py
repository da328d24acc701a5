"""`vsd record` writes topics of running nodes into a bag; `vsd replay` asks a bag again, or plays it.

The commands alone: subscriptions and writing are in `ros.recorder`, replaying as fast as possible without ROS
in `bags`, live to running nodes in `demo.live`. All are imported when a command runs.
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
from typing import Any

import click

from vlm_spec_decode.bags.cli import replay as offline
from vlm_spec_decode.bags.settings import DEFAULT_TOPICS, SAMPLE, Note, RecordConfig, Recorded
from vlm_spec_decode.core.dds import MAX_DOMAIN
from vlm_spec_decode.core.errors import BagError
from vlm_spec_decode.core.options import FOLDER, as_json, option, options

SPIN_S = 0.2


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turn SIGINT, SIGTERM and SIGHUP into an event while the block runs, so that the bag is completed."""
    asked = threading.Event()

    def note(_number: int, _frame: FrameType | None) -> None:
        asked.set()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # Under nohup SIGHUP is ignored, and stays so.
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    old = {number: signal.signal(number, note) for number in handled}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def run(config: RecordConfig, note: Note, should_stop: Callable[[], bool]) -> Recorded:
    """Record until `should_stop` or the duration is over; return messages per topic."""
    from vlm_spec_decode.ros.recorder import Recorder

    recorder = Recorder(config, note)
    until_s = time.monotonic() + config.duration_s if config.duration_s else float("inf")
    try:
        while not should_stop() and time.monotonic() < until_s:
            recorder.subscribe_new()
            recorder.spin(SPIN_S)
    finally:
        recorder.close()
    return Recorded(dict(recorder.counts), recorder.missed())


@click.command()
@click.argument("out", type=FOLDER)
@option(RecordConfig, "topics", "--topic", default=(), show_default="ours")
@click.option("--all", "everything", is_flag=True, help="Every topic whose messages are installed.")
@options(RecordConfig, "storage")
@option(RecordConfig, "duration_s", "--duration")
@option(RecordConfig, "domain", default=None, show_default=False)
@as_json
def record(
    out: Path, topics: tuple[str, ...], everything: bool, domain: int | None, as_json: bool, **given: Any
) -> int:
    """Record camera, instructions, answers, plans and motion of running nodes into the new bag OUT."""
    from vlm_spec_decode.cli.console import ros_domain

    chosen = ("*",) if everything else topics or DEFAULT_TOPICS
    config = RecordConfig(out, ros_domain() if domain is None else domain, chosen, **given)
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


LIVE = (
    click.Option(["--live"], is_flag=True, help="To running nodes (use_sim_time), at the bag's rate."),
    click.Option(
        ["--rate"], type=click.FloatRange(0.05, 20), default=1.0, show_default=True, help="With --live."
    ),
    click.Option(
        ["--domain"], type=click.IntRange(0, MAX_DOMAIN), help="With --live; default: ROS_DOMAIN_ID, else 0."
    ),
    click.Option(["--namespace"], default="", help="With --live: namespace of the nodes."),
)


@click.command(params=[*offline.params, *LIVE], help=offline.help)
def replay(live: bool, rate: float, domain: int | None, namespace: str, **options: Any) -> int:
    """Choose between replay without ROS and to running nodes."""
    if live:
        return _live(rate, domain, namespace, options)
    if offline.callback is None:
        raise TypeError("the command has nothing to call")
    return int(offline.callback(**options))


def _live(rate: float, domain: int | None, namespace: str, options: dict[str, Any]) -> int:
    from vlm_spec_decode.bags.events import Topics
    from vlm_spec_decode.bags.questions import AskPlan, read_instructions
    from vlm_spec_decode.cli.console import ros_domain
    from vlm_spec_decode.demo.live import LiveConfig, LivePlayer

    bags = (*options["bags"], *((SAMPLE,) if options["sample"] else ()))
    if len(bags) != 1:
        raise BagError("--live replays one bag at a time")
    topics = Topics(*(options[f"{role}_topic"] for role in ("image", "instruction", "motion")))
    file: Path | None = options["instructions"]
    plan = AskPlan(options["instruction"], read_instructions(file) if file else ())
    on = ros_domain() if domain is None else domain
    player = LivePlayer(LiveConfig(bags[0], options["out"], topics, plan, rate, on, namespace))
    try:
        with interruptible() as asked:
            document = player.play(asked.is_set)
    finally:
        player.close()
    if options["as_json"]:
        click.echo(json.dumps(document))
    else:
        counts = ", ".join(f"{document[name]} {name}" for name in ("frames", "instructions", "answers"))
        click.echo(f"{counts}; the recording is {document['recorded']}")
    return 0
