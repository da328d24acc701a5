"""Measures this computer as a hardware profile: the shipped models, one thread, CPU time of the process.

    python benchmarks/profile_cpu.py [--name NAME] [--out FILE.yaml]

CPU time rather than wall-clock time, so that whatever else runs does not count. What a further node of a pass
and a further row of a draft batch cost is the slope from 4 to 24 nodes and from 1 to 16 rows; what an exit
costs, a pass with all of them against one without.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from figures import ROOT, machine

from vlm_spec_decode.bench.pairs import recorded_prompts
from vlm_spec_decode.core.ports import ModelContext
from vlm_spec_decode.models.engines.torch_loop import VlmModel
from vlm_spec_decode.models.loader import load_model, shipped

REPEATS = 15
PREFIX = 8


def spent_ms(run: Callable[[], object]) -> float:
    """Return the CPU time of a call."""
    began_s = time.process_time()
    run()
    return 1000 * (time.process_time() - began_s)


def ignore_exit(exit_layer: int, scores: object) -> None:
    """Take an early exit and do nothing: the exit itself is what is measured."""


def pass_ms(model: VlmModel, nodes: int, is_first: bool = False, with_exits: bool = False) -> float:
    """Return the median time of a pass over `nodes` siblings below a prefix one token longer than before."""
    question, hook = recorded_prompts(1)[0], ignore_exit if with_exits else None
    taken = []
    for repeat in range(REPEATS + 2):
        context: ModelContext = model.open(question)
        if is_first:
            taken.append(spent_ms(context.prefill))
            context.close()
            continue
        start = (10 + repeat,) * PREFIX
        context.choose(start)
        tree = tuple(range(20, 20 + nodes)), (0,) * nodes
        taken.append(spent_ms(lambda c=context, p=(*start, 11), t=tree: c.choose(p, t, hook)))
        context.close()
    return statistics.median(taken[2:])


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="Measure this computer as a hardware profile.")
    parser.add_argument("--name", default="cpu")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    target, draft = load_model(shipped("target")), load_model(shipped("draft"))
    step, four, many = (pass_ms(target, n) for n in (0, 4, 24))
    with_exits_ms = pass_ms(target, 4, with_exits=True)
    one, batch = pass_ms(draft, 0), pass_ms(draft, 15)
    values = {
        "draft_ms": one,
        "step_ms": step,
        "verify_ms": four,
        "prefill_ms": pass_ms(target, 0, is_first=True),
        "cloud_draft_ms": one,
        "node_fraction": max(0.0, (many / four - 1) / 20),
        "free_nodes": 4,
        "batch_fraction": max(0.0, (batch / one - 1) / 15),
        "draft_prefill_ms": pass_ms(draft, 0, is_first=True),
        "exit_fraction": max(0.0, (with_exits_ms / four - 1) / len(target.card.exit_layers)),
    }
    lines = [f"name: {options.name}", *(f"{k}: {v:.4g}" for k, v in values.items())]
    source = f"the shipped pair on {machine()}, one thread, CPU time (benchmarks/profile_cpu.py)"
    path = options.out or ROOT / "config" / "profiles" / f"{options.name}.yaml"
    path.write_text("\n".join([*lines, f'source: "{source}"', ""]), encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
