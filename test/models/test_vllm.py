"""vLLM against our own loop: the same answers, whatever is drafted, forgotten, preempted, resumed or killed.

The checkpoint is tiny and has Qwen's 151,936 ids. Skipped where `make setup-vllm` has not been run.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from test.models.checkpoints import jpeg
from test.models.vllm_checkpoint import qwen2_vl
from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.core.errors import EngineStopped, ImageError, InstructionError, ModelError
from vlm_spec_decode.core.load_progress import LOGGER
from vlm_spec_decode.core.ports import Model, ModelContext, ScoreRequest
from vlm_spec_decode.core.types import Image, Observation, SamplingParams, Tokens
from vlm_spec_decode.decoding.choices import as_choices
from vlm_spec_decode.decoding.verify import verify_coupled
from vlm_spec_decode.models.checkpoint import TENSORS
from vlm_spec_decode.models.engines import vllm_process
from vlm_spec_decode.models.engines.vllm import VllmModel
from vlm_spec_decode.models.grammar import constrained
from vlm_spec_decode.models.loader import load_model


def why_not() -> str:
    try:
        vllm_process.check_version(vllm_process.find_python())
    except ModelError as error:
        return str(error)
    return ""


WHY_NOT = why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(WHY_NOT), reason=f"no vLLM here: {WHY_NOT}"),
]

LENGTH = 24
GREEDY = SamplingParams(max_tokens=LENGTH)
SAMPLED = SamplingParams(temperature=0.8, seed=5, max_tokens=LENGTH)
CUT = SamplingParams(temperature=1.2, top_k=8, top_p=0.8, seed=6, max_tokens=LENGTH)
# vLLM's logits are ours up to 1e-3, so what is asked here is nowhere a tie to within that.
SEEN = Observation(Image(jpeg(64, 48), 64, 48), "go to the red chair")
UNSEEN = Observation(None, "go to the red chair", ("turn(25)",))

KV_MIB = 1
"""Room for 512 tokens: two answers with their prompts, or a few more."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen2_vl(tmp_path_factory.mktemp("vllm") / "qwen2_vl")


@pytest.fixture(scope="module")
def ours(folder: Path) -> Model:
    return load_model(f"{folder},prompt=bare")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Iterator[VllmModel]:
    model = load_model(f"{folder},prompt=bare,engine=vllm,kv_mib={KV_MIB},answers=16")
    assert isinstance(model, VllmModel)
    yield model
    model.process.close()


def await_ready(model: VllmModel) -> None:
    until_s = time.monotonic() + 120
    while not model.is_ready:
        assert time.monotonic() < until_s
        time.sleep(0.1)


@pytest.fixture(autouse=True)
def running(theirs: VllmModel) -> None:
    """No test begins while the process starts again after the one before."""
    await_ready(theirs)


def step(model: Model, context: ModelContext, said: Tokens, drafts: Tokens, params: SamplingParams) -> Tokens:
    """Return what one pass says after `said`."""
    parents = tuple(range(len(drafts)))
    (found,) = model.score_batch([ScoreRequest(context, said, drafts, parents)])
    if isinstance(found, Exception):
        raise found
    return verify_coupled(found, drafts, parents, len(said), params).tokens


def plain(model: Model, observation: Observation, params: SamplingParams, length: int = LENGTH) -> Tokens:
    context, said = model.open(observation), Tokens()
    while len(said) < length:
        said += step(model, context, said, (), params)
    context.close()
    return said


def drafted(truth: Tokens, said: Tokens, rng: np.random.Generator, wrong: float) -> Tokens:
    """Return up to 11 drafts, each wrong with this chance."""
    right = truth[len(said) : len(said) + int(rng.integers(0, 12))]
    return tuple((token + 1) % 1000 if rng.random() < wrong else token for token in right)


@pytest.mark.parametrize("observation", [SEEN, UNSEEN], ids=["seen", "unseen"])
@pytest.mark.parametrize("params", [GREEDY, SAMPLED, CUT], ids=["greedy", "sampled", "cut"])
def test_answers_are_those_of_our_own_loop(
    ours: Model, theirs: VllmModel, params: SamplingParams, observation: Observation
) -> None:
    rng, truth = np.random.default_rng(1), plain(ours, observation, params)
    for wrong in (0.0, 0.3, 1.0):
        context, said, passes = theirs.open(observation), Tokens(), 0
        while len(said) < LENGTH:
            said += step(theirs, context, said, drafted(truth, said, rng, wrong), params)
            passes += 1
        context.close()
        assert said[:LENGTH] == truth
        assert passes == LENGTH if wrong == 1.0 else passes < LENGTH


def test_the_picture_decides(ours: Model, theirs: VllmModel) -> None:
    other = Observation(Image(jpeg(64, 48, seed=1), 64, 48), SEEN.instruction)
    answers = [plain(theirs, observation, GREEDY) for observation in (SEEN, other)]
    assert answers == [plain(ours, observation, GREEDY) for observation in (SEEN, other)]
    assert answers[0] != answers[1]


@pytest.mark.parametrize("size", [(200, 150), (33, 61)])
def test_pictures_are_made_smaller_or_larger_to_the_same_pixels(
    ours: Model, theirs: VllmModel, size: tuple[int, int]
) -> None:
    for seed in range(3):
        asked = Observation(Image(jpeg(*size, seed=seed), *size), SEEN.instruction)
        assert plain(theirs, asked, GREEDY) == plain(ours, asked, GREEDY)


def test_a_grammar_holds_with_drafts_that_it_forbids(ours: Model, theirs: VllmModel) -> None:
    rng = np.random.default_rng(2)
    held = [constrained(model, model.codec, language(True)) for model in (ours, theirs)]  # type: ignore[attr-defined]
    for params in (GREEDY, SAMPLED):
        truths = [Tokens(), Tokens()]
        for index, model in enumerate(held):
            context = model.open(SEEN)
            while len(truths[index]) < LENGTH:
                truth = truths[0] if index else ()
                said = truths[index]
                said += step(model, context, said, drafted(truth, said, rng, 0.5), params)
                truths[index] = said + context.forced(said)
        assert truths[0][:LENGTH] == truths[1][:LENGTH]


def test_answers_share_passes_and_rest_while_their_drafts_have_not_come(
    ours: Model, theirs: VllmModel
) -> None:
    rng = np.random.default_rng(3)
    params = [GREEDY, SAMPLED, CUT]
    truths = [plain(ours, SEEN, each) for each in params]
    contexts, said = [theirs.open(SEEN) for _ in params], [Tokens() for _ in params]
    while any(len(each) < LENGTH for each in said):
        due = [i for i in range(3) if len(said[i]) < LENGTH and rng.random() < 0.6]
        drafts = [drafted(truths[i], said[i], rng, 0.3) for i in due]
        asked = [
            ScoreRequest(contexts[i], said[i], each, tuple(range(len(each))))
            for i, each in zip(due, drafts, strict=True)
        ]
        scored = [as_choices(found) for found in theirs.score_batch(asked)]  # type: ignore[arg-type]
        waits = [
            each.prefetch([len(said[i]) + row for row in range(len(each))], params[i])
            for i, each in zip(due, scored, strict=True)
        ]
        for wait in waits:
            wait()
        for i, each, drafts_of in zip(due, scored, drafts, strict=True):
            parents = tuple(range(len(drafts_of)))
            said[i] += verify_coupled(each, drafts_of, parents, len(said[i]), params[i]).tokens
    assert [each[:LENGTH] for each in said] == truths
    for context in contexts:
        context.close()


def test_more_answers_than_the_cache_holds_take_turns(ours: Model, theirs: VllmModel) -> None:
    many = Observation(SEEN.image, "go to the red chair, then " * 10)
    truth = plain(ours, many, SAMPLED)
    contexts = [theirs.open(many) for _ in range(12)]
    said = [Tokens() for _ in contexts]
    for context in contexts:
        context.prefill()
    assert sum(context.kv_bytes for context in contexts) > KV_MIB << 20, "some of them have lost their cache"
    while any(len(each) < LENGTH for each in said):
        for i, context in enumerate(contexts):
            said[i] += step(theirs, context, said[i], truth[len(said[i]) : len(said[i]) + 4], SAMPLED)
    assert {each[:LENGTH] for each in said} == {truth}
    for context in contexts:
        context.close()


def test_an_answer_beyond_the_cache_is_refused_and_the_others_go_on(ours: Model, theirs: VllmModel) -> None:
    truth = plain(ours, UNSEEN, GREEDY)
    long = Observation(None, "go " * 600)
    with pytest.raises(InstructionError):
        plain(theirs, long, GREEDY)
    with pytest.raises(ImageError):
        plain(theirs, Observation(Image(b"no picture", 64, 48), "go"), GREEDY)
    assert plain(theirs, UNSEEN, GREEDY) == truth


def test_what_was_forgotten_is_read_again(ours: Model, theirs: VllmModel) -> None:
    truth, context, said = plain(ours, SEEN, CUT), theirs.open(SEEN), Tokens()
    while len(said) < LENGTH:
        context.forget()
        said += step(theirs, context, said, truth[len(said) : len(said) + 3], CUT)
    assert said[:LENGTH] == truth


def test_an_answer_goes_on_from_committed_tokens(ours: Model, theirs: VllmModel) -> None:
    """Also after more of them than one step of vLLM verifies, and after tokens that it would not say."""
    length = 150
    params = SamplingParams(temperature=0.8, seed=9, max_tokens=length)
    truth = plain(ours, UNSEEN, params, length)
    context = theirs.open(UNSEEN)
    assert step(theirs, context, truth[:140], truth[140:143], params) == truth[140:144]
    other = tuple((token + 1) % 1000 for token in truth[:5])
    ours_says = step(ours, ours.open(UNSEEN), other, (), params)
    assert step(theirs, theirs.open(UNSEEN), other, (), params) == ours_says
    # The same answer told in another way: what vLLM holds of it is dropped.
    assert step(theirs, context, other, (), params) == ours_says


def test_closed_answers_leave_their_room(theirs: VllmModel) -> None:
    for _ in range(60):
        context = theirs.open(SEEN)
        context.prefill()
        context.close()
        context.close()
    with pytest.raises(ModelError, match="closed"):
        context.choose(())


def test_trees_and_other_questions_are_refused_by_name(theirs: VllmModel) -> None:
    context = theirs.open(UNSEEN)
    with pytest.raises(ModelError, match="no trees"):
        context.choose((), ((7, 8), (0, 0)))
    choices = context.choose((), ((7, 8), (0, 1)))
    with pytest.raises(ModelError, match="nothing else"):
        choices.confidence(0, 1)
    with pytest.raises(ModelError, match="nothing else"):
        choices.distribution(0, SAMPLED, 1 << 40)
    with pytest.raises(ModelError, match="own places"):
        choices.pick((0,), (5,), GREEDY)


def test_a_killed_process_is_named_started_again_and_answers_go_on(ours: Model, theirs: VllmModel) -> None:
    truth, context = plain(ours, SEEN, SAMPLED), theirs.open(SEEN)
    said = step(theirs, context, (), truth[:3], SAMPLED)
    pid = theirs.process.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineStopped, match="signal 9"):
        step(theirs, context, said, truth[4:6], SAMPLED)
    with pytest.raises(EngineStopped, match="started again"):
        theirs.open(SEEN)
    assert not theirs.is_ready
    await_ready(theirs)
    while len(said) < LENGTH:
        said += step(theirs, context, said, truth[len(said) : len(said) + 2], SAMPLED)
    assert said[:LENGTH] == truth


def test_all_answers_of_a_pass_are_told_that_the_process_ended_and_none_asks_again(theirs: VllmModel) -> None:
    contexts = [theirs.open(SEEN) for _ in range(3)]
    scored = [as_choices(found) for found in theirs.score_batch([ScoreRequest(c, ()) for c in contexts])]  # type: ignore[arg-type]
    waits = [each.prefetch((0,), GREEDY) for each in scored]
    pid = theirs.process.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineStopped):
        waits[0]()
    await_ready(theirs)
    for each in scored:
        with pytest.raises(EngineStopped):
            each.pick((0,), (0,), GREEDY)


def test_a_process_that_hangs_is_killed(theirs: VllmModel, monkeypatch: pytest.MonkeyPatch) -> None:
    context = theirs.open(SEEN)
    context.prefill()  # the first pass of a new process takes longer than what counts as hanging here
    monkeypatch.setattr(vllm_process, "HANGS_S", 1.0)
    pid = theirs.process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    began_s = time.monotonic()
    with pytest.raises(EngineStopped, match="said nothing"):
        step(theirs, context, (), (), GREEDY)
    assert time.monotonic() - began_s < 10


def test_threads_may_ask_at_once(ours: Model, theirs: VllmModel) -> None:
    truth, found = plain(ours, UNSEEN, GREEDY), list[Tokens]()
    threads = [threading.Thread(target=lambda: found.append(plain(theirs, UNSEEN, GREEDY))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == [truth] * 3


def test_the_load_is_told_as_it_goes(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", LOGGER)
    model = load_model(f"{folder},prompt=bare,engine=vllm,kv_mib=4,answers=2", role="target")
    assert isinstance(model, VllmModel)
    model.process.close()
    load = next(record.load for record in caplog.records if hasattr(record, "load"))
    assert load.total_bytes == (folder / "model.safetensors").stat().st_size
    assert 0.9 < load.shares[TENSORS] <= 1.0


@pytest.mark.parametrize("is_loaded", [True, False])
def test_it_ends_with_a_cloud_that_is_killed(folder: Path, is_loaded: bool) -> None:
    """Also one that still loads; and the folder that the cloud would have removed goes with it."""
    code = "import sys, time\nfrom vlm_spec_decode.models.loader import load_model\n"
    code += "model = load_model(sys.argv[1])\nprint('loaded', flush=True)\ntime.sleep(300)"
    spec = f"{folder},prompt=bare,engine=vllm,kv_mib=4,answers=2"
    cloud = subprocess.Popen([sys.executable, "-c", code, spec], stdout=subprocess.PIPE, text=True)
    assert cloud.stdout is not None
    try:
        if is_loaded:
            assert cloud.stdout.readline() == "loaded\n"
        until_s = time.monotonic() + 120
        while not (found := hosts_of(cloud.pid)):
            assert time.monotonic() < until_s
            time.sleep(0.1)
        (pid,) = found
        places = re.findall(r"/[^\0]*/vsd-vllm-[^\0/]+", Path(f"/proc/{pid}/cmdline").read_text())
        assert Path(places[0]).is_dir()
    finally:
        cloud.kill()
        cloud.wait()
    until_s = time.monotonic() + 90  # it first imports vLLM, on a busy computer for half a minute
    while Path(f"/proc/{pid}").exists() or Path(places[0]).exists():
        assert time.monotonic() < until_s
        time.sleep(0.1)


def hosts_of(pid: int) -> list[int]:
    command = ["pgrep", "-P", str(pid), "-f", "vllm_host"]
    return [int(word) for word in subprocess.run(command, capture_output=True, check=False).stdout.split()]


def test_what_vllm_cannot_load_is_refused_in_one_line(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ModelError, match="no early exits"):
        load_model(f"{folder},engine=vllm,exits=50")
    with pytest.raises(ModelError, match="name a quantised checkpoint"):
        load_model(f"{folder},engine=vllm,quantize=int8")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="vLLM cannot load it") as told:
        load_model(f"{broken},prompt=bare,engine=vllm")
    assert "\n" not in str(told.value)
