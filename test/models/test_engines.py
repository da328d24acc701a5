"""Engines: chosen by name, equal in what they say, and one from outside is one like ours."""

from __future__ import annotations

import runpy
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from test.models import checkpoints
from test.models.conftest import Pair, load_pair
from test.models.test_context import assert_plain, ends_of, random_tree
from vlm_spec_decode.core.errors import ConfigError, ModelError
from vlm_spec_decode.core.ports import ScoreRequest
from vlm_spec_decode.core.types import Tokens
from vlm_spec_decode.decoding.choices import as_choices
from vlm_spec_decode.edge.ask import AskConfig, run
from vlm_spec_decode.edge.factory import EdgeSettings
from vlm_spec_decode.models import loader
from vlm_spec_decode.models.engines.base import DEFAULT_ENGINE, LoadOptions
from vlm_spec_decode.models.engines.torch_loop import ENGINE, require_own_loop
from vlm_spec_decode.models.loader import load_model, load_models
from vlm_spec_decode.models.registry import ENGINES, EngineRegistry, register_engine
from vlm_spec_decode.models.spec import parse_spec

EXAMPLE = Path(__file__).parents[2] / "examples" / "07_new_engine.py"
SHIPPED = tuple(ENGINES)


@pytest.fixture(autouse=True)
def example(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The example's engine is registered for one test."""
    monkeypatch.setattr(ENGINES, "_sources", dict(ENGINES._found()))
    return runpy.run_path(str(EXAMPLE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.llama(tmp_path_factory.mktemp("engines") / "llama")


@pytest.fixture(params=[DEFAULT_ENGINE, "transformers"])
def engine_pair(request: pytest.FixtureRequest, folder: Path) -> Pair:
    """One checkpoint in an engine, beside Transformers' forward over everything."""
    reference = load_pair("llama", folder)
    model = load_model(f"{folder},prompt=bare", engine=request.param)
    return Pair(folder, model, reference.network, reference.inputs, reference.observation)


def test_every_engine_scores_trees_exactly_whatever_the_answers_life(engine_pair: Pair) -> None:
    rng = np.random.default_rng(1)
    context, prefix = engine_pair.model.open(engine_pair.observation), ()
    context.prefill()
    for _ in range(8):
        tokens, parents = random_tree(rng, int(rng.integers(0, 9)))
        assert_plain(engine_pair, context.score(prefix, tokens, parents), prefix, tokens, parents)
        prefix = ends_of(prefix, tokens, parents)[int(rng.integers(0, len(tokens) + 1))]
        if rng.random() < 0.3:
            prefix = prefix[:-2]


def test_every_engine_scores_batches_and_keeps_errors_apart(engine_pair: Pair) -> None:
    contexts = [engine_pair.model.open(engine_pair.observation) for _ in range(3)]
    contexts[1].close()
    asked = [ScoreRequest(context, (7,), (8, 9), (0, 0)) for context in contexts]
    first, closed, third = engine_pair.model.score_batch(asked)
    assert isinstance(closed, ModelError)
    for found in (first, third):
        assert_plain(engine_pair, as_choices(found).logits, (7,), (8, 9), (0, 0))


def test_every_engine_frees_its_cache_and_computes_it_again(engine_pair: Pair) -> None:
    context = engine_pair.model.open(engine_pair.observation)
    before = context.score((7, 8), (9,), (0,))
    held = context.kv_bytes
    assert held > 0
    context.forget()
    assert context.kv_bytes == 0
    np.testing.assert_allclose(context.score((7, 8), (9,), (0,)), before, atol=1e-4)
    assert context.kv_bytes == held
    context.close()
    context.close()
    assert context.kv_bytes == 0
    with pytest.raises(ModelError, match="closed"):
        context.score((7,))


def test_cards_of_one_checkpoint_agree(folder: Path) -> None:
    ours, theirs = (load_model(folder, engine=name).card for name in (DEFAULT_ENGINE, "transformers"))
    assert ours == theirs


def said(draft: str, target: str, strategy: str) -> Tokens:
    settings = EdgeSettings(draft=draft, target=target, grammar=False, max_tokens=12, strategy=strategy)
    return tuple(run(AskConfig(instruction="go to the red chair", settings=settings))["token_ids"])


@pytest.mark.parametrize("strategy", ["speculative", "hybrid"])
def test_a_pair_may_run_in_two_engines(folder: Path, strategy: str) -> None:
    """A target in another engine says the same, with a draft of ours, and the other way round."""
    ours, theirs = str(folder), f"{folder},engine=transformers"
    plain = said(ours, ours, "autoregressive")
    assert len(plain) > 0
    assert said(ours, theirs, strategy) == said(theirs, ours, strategy) == plain


def test_the_example_says_what_generate_says(
    example: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    example["main"]()
    answer, same = capsys.readouterr().out.splitlines()
    assert same == "same as generate: True"
    assert int(answer.split()[4]) < int(answer.split()[1]) == 16


def test_what_an_engine_cannot_do_is_refused(folder: Path) -> None:
    for option in ("exits=50", "quantize=int8", "device=auto"):
        with pytest.raises(ModelError, match="engine transformers: no exits"):
            load_model(f"{folder},engine=transformers,{option}")
    with pytest.raises(ModelError, match="can be read with engine=torch_loop only"):
        require_own_loop(load_model(folder, engine="transformers"))


def test_engines_are_chosen_by_name(folder: Path) -> None:
    assert SHIPPED == (DEFAULT_ENGINE, "vllm")
    assert ENGINES[DEFAULT_ENGINE] is ENGINE
    options = parse_spec("a/b,engine=transformers", LoadOptions()).options
    assert options.engine == "transformers"
    assert type(load_model(f"{folder},engine=torch_loop", engine="transformers")).__name__ == "VlmModel"
    with pytest.raises(ModelError, match=r"unknown engine 'steam' \(known: torch_loop, vllm, transformers\)"):
        load_model(f"{folder},engine=steam")
    with pytest.raises(ConfigError, match="already an engine 'torch_loop'"):
        register_engine("torch_loop", "elsewhere:ENGINE")


@pytest.mark.parametrize(
    "source", ["vlm_spec_decode.models.engines.torch_loop", "vlm_spec_decode.models.loader:load_model"]
)
def test_a_source_that_is_no_engine_of_this_name_is_told(source: str) -> None:
    mine = EngineRegistry()
    mine.add("mine", source)
    with pytest.raises(ConfigError, match="engine 'mine'"):
        mine["mine"]


@pytest.mark.parametrize(("engine", "threads"), [(DEFAULT_ENGINE, 2), ("transformers", 1)])
def test_only_our_own_engine_loads_beside_itself(
    engine: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two calls of Transformers' `from_pretrained` at once leave its classes changed; ours wait."""
    monkeypatch.setattr(loader, "load_model", lambda *_, **__: threading.current_thread())
    assert len({*load_models(["first", f"second,engine={engine}"])}) == threads
