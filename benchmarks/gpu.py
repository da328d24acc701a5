"""What a GPU takes for drafting and verifying, at the shapes of real VLMs, and a hardware profile of it.

    python benchmarks/gpu.py [--device cuda] [--out out/gpu] [--edge FILE] [--small]

One command, one GPU, at most `--minutes` (8). Random weights in the shapes of `gpu_models`, made on the
device: no file is read, nothing is downloaded. Every finished row is written at once, and a second call goes
on where the first one stopped. A row is a median in ms, beside that of the bare layers and head for the same
rows where there is such a thing. At the end: each figure with its bar, one JSON line, and a hardware profile
for each pair in `OUT/profiles`, to be used by path. `--edge` takes the drafts' rows from a run elsewhere, on
the robot's computer say; without it draft and target are on this device. `--small` runs everything once in
small, for a CPU and a test; it has no bars.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from figures import Figure, machine, report
from gpu_models import PAIRS, SHAPES, Shape, build, context_of, small

from vlm_spec_decode.core.types import SamplingParams
from vlm_spec_decode.models.choose_batch import BatchChoices
from vlm_spec_decode.models.context import VlmContext, run_pass
from vlm_spec_decode.models.decoder import Decoder

SETTINGS = {
    "greedy": SamplingParams(stop_ids=(1,), max_tokens=100_000),
    "sampled": SamplingParams(temperature=0.7, top_p=0.9, stop_ids=(1,), max_tokens=100_000),
}
NODES = (0, 1, 4, 8, 16, 32, 64)
SESSIONS = (1, 2, 4, 8, 16, 32, 64)
DRAFT_ROWS = (1, 8, 24)
SESSION_NODES, EXIT_NODES, CHILDREN = 4, 8, 6
WARM_UPS = 4
"""Turns that do not count: libraries set themselves up, and a pass's shape is recorded at its third use."""

BARS = {"choosing": 0.03, "nodes": 1.25, "sessions": 2.0}

Row = dict[str, Any]
Run = Callable[[int], object]
"""One turn of what is measured; the number of the turn keeps its tokens apart from those of others."""


@dataclass
class Rows:
    """The finished rows, in a file that is written after each of them."""

    path: Path
    made: dict[str, Any]
    found: dict[str, Row] = field(default_factory=dict)

    def read(self) -> None:
        """Take over what an earlier run has finished. Stops if it ran elsewhere or otherwise."""
        if not self.path.is_file():
            return
        document = json.loads(self.path.read_text(encoding="utf-8"))
        if document["made"] != self.made:
            raise SystemExit(
                f"{self.path} was made with {document['made']}, not {self.made}: name another --out"
            )
        self.found = document["rows"]

    def add(self, name: str, row: Row) -> None:
        """Keep a row and write all of them."""
        self.found[name] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(
            json.dumps({"made": self.made, "rows": self.found}, indent=1) + "\n", encoding="utf-8"
        )
        part.replace(self.path)

    def ms(self, name: str, column: str = "ms") -> float | None:
        """Return a row's number, None if the row is not there."""
        value: float | None = self.found.get(name, {}).get(column)
        return value


@dataclass(frozen=True)
class Bench:
    """One model on the device, and how often a turn is repeated."""

    decoder: Decoder
    prompt: int
    turns: int

    def median_ms(self, run: Run, after: Callable[[], object] = lambda: None) -> float:
        """Return the median time of a turn, from an idle device to an idle device, after the first few."""
        taken = list[float]()
        for turn in range(self.turns + WARM_UPS):
            self.wait()
            began_s = time.perf_counter()
            run(turn)
            self.wait()
            taken.append(1000 * (time.perf_counter() - began_s))
            after()
        return statistics.median(taken[WARM_UPS:])

    def wait(self) -> None:
        """Wait until the device has nothing to do."""
        if self.decoder.device.type == "cuda":
            torch.cuda.synchronize(self.decoder.device)

    def tree(self, nodes: int, turn: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return siblings below the prefix that no other turn has."""
        first = 1000 + 100 * turn
        return tuple(range(first, first + nodes)), (0,) * nodes

    def bare_ms(self, contexts: list[VlmContext], nodes: int) -> float:
        """Return the time of the layers and the head alone, for `nodes` and one token more of each answer."""
        entries = list[Any]()

        @torch.inference_mode()
        def run(_turn: int) -> object:
            *_, (_, states) = self.decoder.run_layers([entry.varlen for entry in entries])
            return self.decoder.head(torch.cat(states))

        def renew() -> None:
            for entry in entries:
                entry.context.undo_pass(entry)
            entries[:] = [c.batch_entry((7,), *self.tree(nodes, 35)) for c in contexts]

        renew()
        taken = self.median_ms(run, renew)
        for entry in entries:
            entry.context.undo_pass(entry)
        return taken

    def pass_row(self, nodes: int) -> Row:
        """Measure a target's pass, and its verdict by the best ids."""
        context = context_of(self.decoder, self.prompt)
        bare = self.bare_ms([context], nodes)

        def run(turn: int) -> object:
            prefix = tuple(range(100, 101 + turn))
            choices = batch(context.choose(prefix, self.tree(nodes, turn)))
            return choices.pick_each([len(prefix)] * (nodes + 1), SETTINGS["greedy"])(0)

        return {"ms": self.median_ms(run), "bare_ms": bare}

    def sessions_row(self, sessions: int) -> Row:
        """Measure a pass over the small trees of many answers, and their verdicts."""
        contexts = [context_of(self.decoder, self.prompt + 3 * i) for i in range(sessions)]
        bare = self.bare_ms(contexts, SESSION_NODES)

        def run(turn: int) -> object:
            prefix, tree = tuple(range(100, 101 + turn)), self.tree(SESSION_NODES, turn)
            scored = run_pass(self.decoder, [c.batch_entry(prefix, *tree) for c in contexts])
            # As the cloud does it: all questions are queued before the first is waited for.
            waits = [batch(found).prefetch(range(len(found)), SETTINGS["greedy"]) for found in scored]
            return [wait() for wait in waits]

        return {"ms": self.median_ms(run), "bare_ms": bare}

    def exits_row(self) -> Row:
        """Measure a pass with all exits read, beside the same pass with none."""
        context, heard = context_of(self.decoder, self.prompt), list[object]()

        def listen(_layer: int, choices: Any) -> None:
            heard.append(batch(choices).pick((0,), (0,), SETTINGS["greedy"]))

        def run(turn: int, is_read: bool, start: int) -> object:
            prefix = tuple(range(start, start + 1 + turn))
            hook = listen if is_read else None
            return batch(context.choose(prefix, self.tree(EXIT_NODES, turn), hook)).pick(
                (0,), (0,), SETTINGS["greedy"]
            )

        return {
            "ms": self.median_ms(partial(run, is_read=True, start=100)),
            "without_ms": self.median_ms(partial(run, is_read=False, start=300)),
            "exits": len(self.decoder.exits),
        }

    def choosing_row(self, name: str, rows: int, is_draft: bool) -> Row:
        """Measure choosing alone: all tokens of a verdict, or the children of a draft's nodes."""
        context = context_of(self.decoder, self.prompt)
        bare = self.bare_ms([context], rows - 1)
        choices = batch(context.choose((7,), self.tree(rows - 1, 0)))
        params = SETTINGS[name]

        def run(_turn: int) -> object:
            if is_draft:
                return choices.ranked(range(rows), range(rows), params, CHILDREN, summed=False)
            return choices.pick_each(range(rows), params)(0)

        return {"ms": self.median_ms(run), "bare_ms": bare, "vocabulary": self.decoder.vocab_size}

    def draft_row(self, rows: int) -> Row:
        """Measure a step of the draft over `rows` nodes, scored for the first time, and their children."""
        context = context_of(self.decoder, self.prompt)

        def run(turn: int) -> object:
            asked = tuple(range(1, rows + 1))
            choices = batch(context.choose((), self.tree(rows, turn), rows=asked))
            return choices.ranked(range(rows), [1] * rows, SETTINGS["greedy"], CHILDREN, summed=False)

        return {"ms": self.median_ms(run)}

    def prompt_row(self) -> Row:
        """Measure the pass over a prompt, without its vision tower."""
        return {"ms": self.median_ms(lambda _: context_of(self.decoder, self.prompt)), "tokens": self.prompt}


def batch(choices: Any) -> BatchChoices:
    """Return the choices as a GPU makes them, on a CPU too."""
    return choices if isinstance(choices, BatchChoices) else BatchChoices(choices.scores)


def rows_of(bench: Bench, is_small: bool) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Yield the rows of one model, those first that the profile needs."""
    yield "prompt", bench.prompt_row
    for nodes in (0, 1, 8) if is_small else NODES:
        yield f"pass_{nodes}_nodes", partial(bench.pass_row, nodes)
    for rows in (1, 8) if is_small else DRAFT_ROWS:
        yield f"draft_{rows}_rows", partial(bench.draft_row, rows)
    yield "exits", bench.exits_row
    for name in SETTINGS:
        yield f"verdict_{name}", partial(bench.choosing_row, name, 9 if is_small else 65, False)
        yield f"children_{name}", partial(bench.choosing_row, name, 8 if is_small else 24, True)
    for sessions in (1, 3) if is_small else SESSIONS:
        yield f"pass_{sessions}_sessions", partial(bench.sessions_row, sessions)


def measure(rows: Rows, shapes: list[Shape], options: argparse.Namespace, until_s: float) -> list[str]:
    """Measure what is missing until the time is over; return the names of what then still is."""
    device, left = torch.device(options.device), list[str]()
    for shape in shapes:
        bench: Bench | None = None
        names = [f"{shape.name}/{name}" for name, _ in rows_of(Bench(cast(Any, None), 0, 0), options.small)]
        missing = [name for name in names if name not in rows.found]
        if time.monotonic() > until_s:
            left += missing
        if not missing or time.monotonic() > until_s:
            continue
        try:
            decoder = build(shape, device, dtype_of(options), is_pooled=True)
            bench = Bench(decoder, 40 if options.small else options.prompt, 2 if options.small else 15)
            for name, run in rows_of(bench, options.small):
                full = f"{shape.name}/{name}"
                if full not in missing:
                    continue
                if time.monotonic() > until_s:
                    left.append(full)
                    continue
                rows.add(full, run())
                print(f"{full:36} {rows.found[full]}", file=sys.stderr)
        except torch.OutOfMemoryError as error:
            print(f"{shape.name}: {str(error).splitlines()[0]}", file=sys.stderr)
            left += [name for name in names if name not in rows.found and name not in left]
        decoder = bench = None
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return left


def dtype_of(options: argparse.Namespace) -> torch.dtype:
    """Return the weights' format: bfloat16 as GPUs run it; a test on a CPU may take either."""
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[options.dtype]


def figures_of(rows: Rows) -> list[Figure]:
    """Return the figures that have a bar, of every target that was measured."""
    found = list[Figure]()
    for _, target in PAIRS.values():
        one, many = rows.ms(f"{target}/pass_1_nodes"), rows.ms(f"{target}/pass_64_nodes")
        if one and many:
            found.append(Figure(f"nodes_{target}", many / one, BARS["nodes"], "at most", "64 nodes over 1"))
        one, many = rows.ms(f"{target}/pass_1_sessions"), rows.ms(f"{target}/pass_16_sessions")
        if one and many:
            note = "16 sessions in one pass over one"
            found.append(Figure(f"sessions_{target}", many / one, BARS["sessions"], "at most", note))
        for setting in SETTINGS:
            name = f"{target}/verdict_{setting}"
            taken, bare = rows.ms(name), rows.ms(name, "bare_ms")
            if taken and bare:
                share = taken / bare
                note = f"choosing for 65 rows of {rows.ms(name, 'vocabulary')} ids over the pass"
                found.append(Figure(f"choosing_{setting}_{target}", share, BARS["choosing"], "at most", note))
    return found


def profile_of(draft: Rows, target: Rows, pair: str, where: str) -> dict[str, float | str | int] | None:
    """Return a hardware profile of a pair, None while a row that it needs is missing."""
    names = PAIRS[pair]
    one, several = draft.ms(f"{names[0]}/draft_1_rows"), draft.ms(f"{names[0]}/draft_8_rows")
    copy, prompt = target.ms(f"{names[0]}/draft_1_rows"), draft.ms(f"{names[0]}/prompt")
    step, few, many = (
        target.ms(f"{names[1]}/pass_{nodes}_nodes") for nodes in (0, *sorted(_node_counts(target, names[1])))
    )
    first, exits = target.ms(f"{names[1]}/prompt"), f"{names[1]}/exits"
    with_exits, without = target.ms(exits), target.ms(exits, "without_ms")
    numbers = (one, several, copy, prompt, step, few, many, first, with_exits, without)
    if not all(numbers):
        return None
    least, most = sorted(_node_counts(target, names[1]))
    return {
        "name": f"{where}_{pair}",
        "draft_ms": one,
        "step_ms": step,
        "verify_ms": few,
        "prefill_ms": first,
        "cloud_draft_ms": copy,
        "node_fraction": max(0.0, (many / few - 1) / (most - least)),
        "free_nodes": least,
        "batch_fraction": max(0.0, (several / one - 1) / 7),
        "draft_prefill_ms": prompt,
        "exit_fraction": max(0.0, (with_exits / without - 1) / target.ms(exits, "exits")),
    }


def _node_counts(rows: Rows, target: str) -> tuple[int, int]:
    """Return the two numbers of nodes that a profile's slope is taken from: 4 to 32, or what there is."""
    return (4, 32) if f"{target}/pass_32_nodes" in rows.found else (1, 8)


def write_profiles(rows: Rows, edge: Rows, folder: Path, where: str) -> list[Path]:
    """Write a profile of every pair that has all of its rows; return the files."""
    written = list[Path]()
    for pair in PAIRS:
        values = profile_of(edge, rows, pair, where)
        if values is None:
            continue
        source = f"target and copy on {rows.made['device']}, draft on {edge.made['device']}, "
        source += f"{rows.made['dtype']}, random weights, without vision towers (benchmarks/gpu.py)"
        lines = [
            f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}"
            for key, value in values.items()
        ]
        path = folder / f"{values['name']}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([*lines, f'source: "{source}"', ""]), encoding="utf-8")
        written.append(path)
    return written


def device_name(device: str) -> str:
    """Return what the device calls itself."""
    return torch.cuda.get_device_name(torch.device(device)) if device.startswith("cuda") else machine()


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument("--edge", type=Path, help="rows.json of the computer that drafts")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="stop after so long; a second call goes on"
    )
    parser.add_argument("--prompt", type=int, default=600, help="tokens of the prompt, a picture's included")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument(
        "--only", choices=[shape.name for shape in SHAPES], nargs="+", help="some of the models"
    )
    parser.add_argument("--small", action="store_true", help="everything once, in small, for a CPU")
    options = parser.parse_args()
    until_s = time.monotonic() + 60 * options.minutes
    if options.device == "cpu" and not options.small:
        raise SystemExit(
            "no GPU is at hand (look at nvidia-smi); --small runs on a CPU, and measures nothing"
        )
    torch.set_num_threads(1)
    made = {
        "device": device_name(options.device),
        "torch": torch.__version__,
        "dtype": options.dtype,
        "prompt": options.prompt,
        "small": options.small,
    }
    rows = Rows(options.out / "rows.json", made)
    rows.read()
    shapes = [shape for shape in SHAPES if not options.only or shape.name in options.only]
    left = measure(rows, [small(shape) for shape in shapes] if options.small else shapes, options, until_s)
    edge = rows
    if options.edge:
        document = json.loads(options.edge.read_text(encoding="utf-8"))
        edge = Rows(options.edge, document["made"], document["rows"])
    where = "_".join(made["device"].lower().replace("-", " ").split()[-2:]) if not options.small else "small"
    for path in write_profiles(rows, edge, options.out / "profiles", where):
        print(path)
    if left:
        print(f"{len(left)} rows are left: run the same command again", file=sys.stderr)
    figures = [] if options.small else figures_of(rows)
    return report(figures, options.out / "gpu.json", rows=rows.found, device=made, left=left)


if __name__ == "__main__":
    sys.exit(main())
