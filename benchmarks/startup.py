"""What a start costs: loading a checkpoint of 151,936 ids, over Transformers' own load of the same files.

    python benchmarks/startup.py [--quick] [--before CHECKOUT]

Every load has a process of its own, and the two sides take turns. Both have imported torch, Transformers and
their own modules before the clock starts. Transformers loads tokenizer, image processor and network; we load
the same and return a model that is ready for the handshake: tokenizer digest, hash of all weights, prompt.
The first start finds an empty cache, the second one what the first has kept. Figures are processor time, all
threads together, so that other programs do not count; `vsd ask` is measured whole, imports included.
`--before` runs the same on an earlier checkout of this package. Prints each figure with its bar and ends with
one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from figures import ROOT, Figure, report

sys.path.insert(0, str(ROOT))

BAR = 1.2
SETTLED_S = 3.0
"""Younger files are hashed at every start (`models.checkpoint.fingerprint`)."""


def measured(work: Callable[[], object]) -> tuple[object, dict[str, float]]:
    """Run `work`; return its result, its wall-clock time and its processor time."""
    began_s, cpu_s = time.perf_counter(), time.process_time()
    found = work()
    return found, {"wall_s": time.perf_counter() - began_s, "cpu_s": time.process_time() - cpu_s}


def load_by_transformers(folder: str) -> dict[str, Any]:
    """Load by Transformers alone."""
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

    torch.set_num_threads(1)

    def load() -> object:
        parts = [
            AutoTokenizer.from_pretrained(folder),
            AutoImageProcessor.from_pretrained(folder, backend="pil"),
        ]
        return [*parts, AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()]

    return {"load": measured(load)[1]}


def load_by_us(folder: str) -> dict[str, Any]:
    """Load by us, then compile the action language for the tokenizer."""
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

    from vlm_spec_decode.actions.grammar import language
    from vlm_spec_decode.models.engines import torch_loop
    from vlm_spec_decode.models.grammar import constrained
    from vlm_spec_decode.models.loader import load_model

    assert all((AutoTokenizer, AutoImageProcessor, AutoModelForImageTextToText, torch_loop.ENGINE))
    model, load = measured(lambda: load_model(folder))
    assert isinstance(model, torch_loop.VlmModel)
    _, grammar = measured(lambda: constrained(model, model.codec, language()))
    return {"load": load, "grammar": grammar}


SIDES = {"transformers": load_by_transformers, "ours": load_by_us}


def child(side: str, folder: Path, cache: Path) -> dict[str, Any]:
    """Load in a process of its own."""
    command = [sys.executable, __file__, "--child", side, "--folder", str(folder)]
    done = subprocess.run(command, env=_environment(cache), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def ask(pair: tuple[Path, Path], image: Path, cache: Path, checkout: Path = ROOT) -> dict[str, float]:
    """Ask one question with `vsd ask`, of four tokens, without drafts; return what the process took."""
    models = ["--draft", str(pair[0]), "--target", str(pair[1]), "--strategy", "autoregressive"]
    question = ["--instruction", "go to the red chair", "--image", str(image), "--max-tokens", "4", "--json"]
    command = [sys.executable, "-m", "vlm_spec_decode.cli", "ask", *models, *question]
    before, began_s = os.times(), time.perf_counter()
    environment = _environment(cache) | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=cache, env=environment, capture_output=True, text=True, check=False)
    after = os.times()
    if '"token_ids"' not in done.stdout:
        raise SystemExit(done.stderr)
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall_s": time.perf_counter() - began_s, "cpu_s": cpu_s}


def _environment(cache: Path) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {**os.environ, "PYTHONPATH": path, "VSD_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each field."""
    return {name: round(median(run[name] for run in runs), 3) for name in runs[0]}


def run(work: Path, quick: bool, before: Path | None) -> int:
    """Measure and report."""
    from lib.qwen_checkpoint import write_checkpoint
    from PIL import Image

    turns, width = (2, 256) if quick else (9, 512)
    draft = write_checkpoint(work / "draft", 128, 2, seed=1)
    target = write_checkpoint(work / "target", width, 2 if quick else 4)
    image = work / "frame.jpg"
    Image.radial_gradient("L").convert("RGB").resize((448, 336)).save(image)
    time.sleep(SETTLED_S)
    cache = work / "cache"
    firsts, seconds, bases = [], [], []
    for turn in range(turns):
        bases.append(child("transformers", target, cache)["load"])
        empty = work / f"cache{turn}"
        firsts.append(child("ours", target, empty))
        seconds.append(child("ours", target, empty))
        print(f"turn {turn + 1} of {turns}", file=sys.stderr, flush=True)
    base = medians(bases)
    parts = {
        f"{when}_{part}": medians([found[part] for found in runs])
        for when, runs in (("first", firsts), ("second", seconds))
        for part in ("load", "grammar")
    }

    print(json.dumps({"transformers": base, "ours": parts}), file=sys.stderr, flush=True)

    def over(name: str, grammar: str = "") -> float:
        ours = parts[name]["cpu_s"] + (parts[grammar]["cpu_s"] if grammar else 0.0)
        return ours / base["cpu_s"]

    cache.mkdir()
    asked = {"first": ask((draft, target), image, cache)}
    asked["second"] = medians([ask((draft, target), image, cache) for _ in range(1 if quick else 3)])
    if before:
        asked["before"] = ask((draft, target), image, cache, before)
    note = f"{parts['second_load']['cpu_s']:.2f} s over {base['cpu_s']:.2f} s of processor time"
    figure = Figure("second start", over("second_load"), BAR, "at most", note)
    ratios = {
        "first": round(over("first_load"), 3),
        "second": round(over("second_load"), 3),
        "first_with_grammar": round(over("first_load", "first_grammar"), 3),
        "second_with_grammar": round(over("second_load", "second_grammar"), 3),
    }
    print("over Transformers' own load:", ratios)
    print("vsd ask, four tokens:", asked)
    more = {"ratios": ratios, "transformers": base, "ours": parts, "ask": asked}
    return report([figure], ROOT / "out" / "startup" / "startup.json", **more)


def main() -> int:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller checkpoint, fewer turns")
    parser.add_argument("--before", type=Path, help="an earlier checkout to ask the same question")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(SIDES[given.child](given.folder)))
        return 0
    with tempfile.TemporaryDirectory() as work:
        return run(Path(work), given.quick, given.before)


if __name__ == "__main__":
    sys.exit(main())
