"""vLLM against our own loop: equal answers, a killed process in the middle of 50 answers, time of a pass.

    python benchmarks/engines.py [--quick] [--only equal,killed,passes] [--seed N]

Needs `make setup-vllm`. The checkpoint is a tiny Qwen2-VL with random weights and 151,936 ids. `equal` asks
with pictures and without, greedy and sampled, free and held to the action language, with right and wrong
drafts, and with what happens to answers: forgotten, resumed, others beside them, given up, more than the
cache holds. Both compute in float32, but not in the same order: an answer that differs where rounding of 1e-3
decides is counted as a tie. `killed` goes through `vsd cloud` and sockets. Prints the seed, drawn anew.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from figures import ROOT, Figure, report

sys.path.insert(0, str(ROOT))

from test.models.checkpoints import jpeg
from test.models.vllm_checkpoint import qwen2_vl
from vlm_spec_decode import Engine
from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.core.errors import CloudRefused, VsdError
from vlm_spec_decode.core.ports import Model, ModelContext, ScoreRequest
from vlm_spec_decode.core.types import Image, Observation, SamplingParams, Tokens
from vlm_spec_decode.decoding.choices import DenseChoices, as_choices
from vlm_spec_decode.decoding.verify import verify_coupled
from vlm_spec_decode.models.engines.torch_loop import VlmModel
from vlm_spec_decode.models.engines.vllm import VllmModel
from vlm_spec_decode.models.grammar import constrained
from vlm_spec_decode.models.loader import load_model

LENGTH = 24
ROUNDING = 1e-3
WORDS = (
    *("go", "to", "walk", "turn", "the", "red", "blue", "green", "chair", "box", "ball"),
    *("left", "right", "slowly", "and", "then", "wait", "here"),
)
LIVES = ("plain", "forgotten", "resumed", "beside others", "after others were given up", "small cache")
ANSWERS = 50
SEEN = Image(jpeg(64, 48), 64, 48)
PORT = 5931


@dataclass
class Case:
    """One question: what is asked, how it is chosen, what is drafted, and what happens to the answer."""

    observation: Observation
    params: SamplingParams
    is_held: bool
    wrong: float
    life: str
    rng: np.random.Generator = field(repr=False)


def cases(seed: int, count: int) -> Iterator[Case]:
    """Draw questions; all kinds in turn."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        picture = Image(jpeg(64, 48, seed=int(rng.integers(1 << 30))), 64, 48) if number % 2 else None
        said = " ".join(rng.choice(WORDS, int(rng.integers(4, 12))))
        temperature = (0.0, 0.7, 1.2)[number % 3]
        cut = {"top_k": 20, "top_p": 0.9} if number % 4 == 3 else {}
        params = SamplingParams(
            temperature=temperature, seed=int(rng.integers(1 << 30)), max_tokens=LENGTH, **cut
        )
        wrong = (0.0, 0.3, 1.0)[int(rng.integers(3))]
        life = LIVES[number % len(LIVES)]
        yield Case(Observation(picture, said), params, number % 5 == 0, wrong, life, rng)


def step(model: Model, context: ModelContext, said: Tokens, drafts: Tokens, params: SamplingParams) -> Tokens:
    """Return what a pass over a chain says, and what the grammar then forces."""
    parents = tuple(range(len(drafts)))
    (found,) = model.score_batch([ScoreRequest(context, said, drafts, parents)])
    if isinstance(found, VsdError):
        raise found
    new = verify_coupled(found, drafts, parents, len(said), params).tokens
    return new + context.forced(said + new)


def plain(model: Model, case: Case) -> Tokens:
    """Return the answer of our own loop, a token a pass."""
    context, said = model.open(case.observation), Tokens()
    while len(said) < LENGTH:
        said += step(model, context, said, (), case.params)
    context.close()
    return said[:LENGTH]


def drafted(model: Model, case: Case, truth: Tokens) -> Tokens:
    """Return vLLM's answer to the same question, with drafts, through what happens to it."""
    others = [model.open(case.observation) for _ in range({"small cache": 12}.get(case.life, 2))]
    if case.life in ("beside others", "after others were given up", "small cache"):
        for other in others:
            step(model, other, (), truth[:2], case.params)
        if case.life == "after others were given up":
            for other in others:
                other.close()
    context = model.open(case.observation)
    said = truth[: LENGTH // 2] if case.life == "resumed" else Tokens()
    while len(said) < LENGTH:
        if case.life == "forgotten":
            context.forget()
        right = truth[len(said) : len(said) + int(case.rng.integers(0, 9))]
        drafts = tuple((t + 1) % 1000 if case.rng.random() < case.wrong else t for t in right)
        said += step(model, context, said, drafts, case.params)
    for each in (*others, context):
        each.close()
    return said[:LENGTH]


def is_tie(model: Model, case: Case, truth: Tokens, said: Tokens) -> bool:
    """Tell whether rounding of our own logits makes our loop say what vLLM says, where they first differ."""
    place = next(i for i, pair in enumerate(zip(truth, said, strict=True)) if pair[0] != pair[1])
    rows = as_choices(model.open(case.observation).choose(truth[:place])).logits
    for _ in range(200):
        moved = rows + case.rng.uniform(-ROUNDING, ROUNDING, rows.shape).astype(np.float32)
        if DenseChoices(moved).pick((0,), (place,), case.params) == [said[place]]:
            return True
    return False


def equal(ours: VlmModel, theirs: VllmModel, seed: int, count: int) -> list[Figure]:
    """Compare answers."""
    held = [constrained(model, model.codec, language(True)) for model in (ours, theirs)]
    found: Counter[str] = Counter()
    for case in cases(seed, count):
        mine, other = held if case.is_held else (ours, theirs)
        truth = plain(mine, case)
        said = drafted(other, case, truth)
        kind = "equal" if said == truth else "tie" if is_tie(mine, case, truth, said) else "differs"
        found[kind] += 1
        if kind != "equal":
            print(f"  {kind}: {case}", flush=True)
    note = f"{found['equal']} equal, {found['tie']} decided by rounding, of {count}"
    return [Figure("engine_answers_that_differ", found["differs"], 0, "at most", note)]


@contextmanager
def in_vllm(folder: Path, kv_mib: int) -> Iterator[VllmModel]:
    """Load the checkpoint in vLLM for as long as the block runs."""
    model = load_model(f"{folder},prompt=bare,engine=vllm,kv_mib={kv_mib},answers=16")
    assert isinstance(model, VllmModel)
    try:
        yield model
    finally:
        model.process.close()


@contextmanager
def cloud(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `vsd cloud --engine vllm` until it answers; end it and all that it has started."""
    command = [sys.executable, "-m", "vlm_spec_decode.cli", "cloud", "--engine", "vllm", "--insecure"]
    command += ["--model", f"{folder},prompt=bare", "--bind", f"tcp://127.0.0.1:{PORT}", "--http", "off"]
    command += ["--no-grammar", "--draft", "none", "--kv-mib", "64", "--free-drafts", "off"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()  # "serving …", or the end of a cloud that cannot
        yield process
    finally:
        # Its vLLM ends when the pipe to it does.
        process.kill()
        process.wait()


def engine_of(process: subprocess.Popen[bytes]) -> int | None:
    """Return the id of vLLM's process of a cloud."""
    listed = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "vllm_host"], capture_output=True, text=True, check=False
    )
    return int(listed.stdout.split()[0]) if listed.stdout else None


def killed(ours: VlmModel, folder: Path) -> list[Figure]:
    """Ask 50 questions by four robots, and kill vLLM when ten have been answered."""
    rng = np.random.default_rng(7)
    questions = [" ".join(rng.choice(WORDS, 6)) for _ in range(ANSWERS)]
    params = SamplingParams(max_tokens=LENGTH)
    truths = {
        text: plain(ours, Case(Observation(SEEN, text), params, False, 0, "", rng)) for text in questions
    }
    outcomes: Counter[str] = Counter()
    left, lock, fatal = list(questions), threading.Lock(), threading.Event()

    def robot() -> None:
        options = {"draft": f"{folder},prompt=bare", "grammar": False, "max_tokens": LENGTH}
        with Engine.connect(f"tcp://127.0.0.1:{PORT}", **options) as engine:
            while True:
                with lock:
                    if not left:
                        return
                    text = left.pop()
                    if len(left) == ANSWERS - 12:
                        fatal.set()
                outcome = asked(engine, text, truths[text])
                with lock:
                    outcomes[outcome] += 1
                if outcome.startswith("named"):
                    time.sleep(1.0)

    with cloud(folder) as process:
        robots = [threading.Thread(target=robot, daemon=True) for _ in range(4)]
        for each in robots:
            each.start()
        fatal.wait(300)
        if (engine := engine_of(process)) is not None:
            os.kill(engine, signal.SIGKILL)
        for each in robots:
            each.join(timeout=300)
    named = sum(count for outcome, count in outcomes.items() if outcome.startswith("named"))
    lost = ANSWERS - outcomes["right"] - outcomes["wrong"] - named
    note = f"{dict(outcomes)}; vLLM {'killed' if engine else 'not found'}"
    return [
        Figure("engine_killed_wrong_answers", outcomes["wrong"], 0, "at most", note),
        Figure("engine_killed_neither_right_nor_named", lost + (engine is None), 0, "at most", note),
    ]


def asked(engine: Engine, text: str, truth: Tokens) -> str:
    """Return what became of a question."""
    try:
        answer = engine.ask(text, SEEN, free_text=True)
    except CloudRefused as error:
        return f"named {error.reason}"
    except VsdError as error:
        return f"failed {type(error).__name__}"
    return "right" if answer.tokens == truth else "wrong"


def passes(ours: VlmModel, theirs: VllmModel) -> dict[str, float]:
    """Time passes of 1 + 5 rows; return vLLM's time over ours, by answers (docs/engines.md)."""
    ratios = {}
    for sessions in (1, 4, 8):
        mine, other = (pass_s(model, sessions) for model in (ours, theirs))
        ratios[f"{sessions} answers"] = round(other / mine, 2)
        print(
            f"a pass of {sessions} answers: ours {1e3 * mine:.1f} ms, vLLM {1e3 * other:.1f} ms", flush=True
        )
    return ratios


def pass_s(model: Model, sessions: int) -> float:
    """Return the median seconds of a pass."""
    params, drafts = SamplingParams(max_tokens=1000), (7, 8, 9, 10, 11)
    contexts = [model.open(Observation(None, f"go to the chair {i}")) for i in range(sessions)]
    said, times = [Tokens() for _ in contexts], []
    for _ in range(15):
        began_s = time.perf_counter()
        asked_for = [
            ScoreRequest(context, each, drafts, tuple(range(5)))
            for context, each in zip(contexts, said, strict=True)
        ]
        scored = [as_choices(found) for found in model.score_batch(asked_for)]  # type: ignore[arg-type]
        waits: list[Callable[[], None]] = [
            each.prefetch([len(before) + row for row in range(6)], params)
            for each, before in zip(scored, said, strict=True)
        ]
        for wait in waits:
            wait()
        for i, each in enumerate(scored):
            said[i] += verify_coupled(each, drafts, tuple(range(5)), len(said[i]), params).tokens
        times.append(time.perf_counter() - began_s)
    for context in contexts:
        context.close()
    return float(np.median(times[1:]))


def main() -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description="Compare vLLM with our own loop.")
    parser.add_argument("--quick", action="store_true", help="60 questions instead of 600")
    parser.add_argument("--only", default="equal,killed,passes", help="parts, separated by commas")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(f"seed {options.seed}", flush=True)
    parts, figures, ratios = options.only.split(","), list[Figure](), dict[str, float]()
    with tempfile.TemporaryDirectory() as place:
        folder = qwen2_vl(Path(place) / "checkpoint")
        ours = load_model(f"{folder},prompt=bare")
        assert isinstance(ours, VlmModel)
        if "killed" in parts:
            figures += killed(ours, folder)
        if "equal" in parts:
            with in_vllm(folder, kv_mib=1) as theirs:
                figures += equal(ours, theirs, options.seed, 60 if options.quick else 600)
        if "passes" in parts:
            with in_vllm(folder, kv_mib=64) as theirs:
                ratios = passes(ours, theirs)
    return report(figures, ROOT / "out" / "engines" / "engines.json", seed=options.seed, passes=ratios)


if __name__ == "__main__":
    sys.exit(main())
