"""The same answers in wall-clock time: a cloud process, encrypted sockets, the emulated link, one core each.

Durations are this machine's. Decoding is what `vsd ask --cloud` does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_spec_decode.bench.pairs import folders_of
from vlm_spec_decode.bench.run import Outcome
from vlm_spec_decode.core.errors import CloudUnreachable
from vlm_spec_decode.core.profiles import load_link
from vlm_spec_decode.core.trace import GenerationResult
from vlm_spec_decode.edge.factory import bring_up
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.strategies.registry import strategy
from vlm_spec_decode.transport import keys

if TYPE_CHECKING:
    from vlm_spec_decode.bench.cells import Cell
    from vlm_spec_decode.bench.pairs import BenchPair


def wall_answers(cell: Cell, pair: BenchPair) -> list[Outcome]:
    """Decode all questions of a pair of checkpoints over sockets. Raises ConfigError for other pairs."""
    draft, target = folders_of(pair.name)
    has_colocated_draft = cell.strategy.endswith("+") or strategy(cell.name).needs_helper
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, pinned(cores[0]):
        key_folder = Path(folder)
        keys.generate(key_folder)
        with cloud(target, draft if has_colocated_draft else "", key_folder, cores[-1]) as address:
            settings = EdgeSettings(
                cloud=address,
                keys=key_folder,
                draft=draft,
                strategy=cell.name,
                temperature=cell.temperature,
                max_tokens=pair.params.max_tokens,
                draft_length=cell.draft_length,
                objective=cell.objective,
                link=load_link(cell.link),
            )
            return _ask(settings, pair)


@contextmanager
def cloud(target: str, draft: str, key_folder: Path, core: int) -> Iterator[str]:
    """Run `vsd cloud` on one core and yield its address; it ends with the block."""
    command = [sys.executable, "-m", "vlm_spec_decode.cli", "cloud", "--bind", "tcp://127.0.0.1:*"]
    command += [
        "--model",
        target,
        "--keys",
        str(key_folder),
        "--json",
        *(["--draft", draft] if draft else []),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (
        tempfile.TemporaryFile("w+") as stderr_file,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr_file, text=True, env=environment
        ) as process,
    ):
        try:
            os.sched_setaffinity(process.pid, {core})
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                stderr_file.seek(0)
                raise CloudUnreachable(f"the cloud did not start: {stderr_file.read()[-300:]}")
            yield json.loads(line)["address"]
        finally:
            process.terminate()


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Bind this process and its threads to one core for the block."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _ask(settings: EdgeSettings, pair: BenchPair) -> list[Outcome]:
    """Ask every question once after one to warm up."""
    runtime, found = bring_up(settings), []
    try:
        for question in (pair.questions[0], *pair.questions):
            for update in runtime.engine.answer(question):
                if update.result:
                    found.append(_outcome(update.result))
    finally:
        runtime.close()
    return found[1:]


def _outcome(result: GenerationResult) -> Outcome:
    """Return a result as an outcome; figures that only virtual time has are 0."""
    draft_s, gpu_s = sum(r.draft_s for r in result.rounds), sum(r.verify_s for r in result.rounds)
    return Outcome.of(result, result.usage, draft_s=draft_s, gpu_s=gpu_s)
