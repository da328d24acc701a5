"""Families: one from outside is one like those that ship, and what none of them covers is refused by name."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlavaForConditionalGeneration,
    Mistral3ForConditionalGeneration,
    OPTConfig,
    OPTForCausalLM,
)

from test.models import checkpoints
from test.models.conftest import Pair, load_pair
from test.models.test_context import assert_plain, ends_of, random_tree
from vlm_spec_decode.core.errors import ConfigError, ModelError
from vlm_spec_decode.core.ports import ScoreRequest
from vlm_spec_decode.core.types import Tokens
from vlm_spec_decode.decoding.choices import as_choices
from vlm_spec_decode.models.engines.base import LoadOptions
from vlm_spec_decode.models.families.base import AnswerCache, Family, ImageFeatures
from vlm_spec_decode.models.families.language import Language
from vlm_spec_decode.models.families.llava import Llava
from vlm_spec_decode.models.families.qwen_vl import QwenVL
from vlm_spec_decode.models.loader import load_model
from vlm_spec_decode.models.registry import ENGINES, FAMILIES, FamilyRegistry, register_family

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "06_new_family.py"
SHIPPED = tuple(FAMILIES)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    for registry in (FAMILIES, ENGINES):
        monkeypatch.setattr(registry, "_sources", dict(registry._found()))


def known_as(monkeypatch: pytest.MonkeyPatch, model_type: str, family: type[Family]) -> None:
    monkeypatch.setitem(FAMILIES._found(), model_type, family)


def mistral3(folder: Path) -> Pair:
    """The example's checkpoint, beside Transformers' own model as the reference."""
    folder = runpy.run_path(str(EXAMPLE))["make_checkpoint"](folder)
    model, observation = load_model(folder), checkpoints.observation()
    prompt = model.encoder.encode(observation)
    inputs = {"input_ids": torch.tensor([prompt.ids]), **prompt.image}
    network = Mistral3ForConditionalGeneration.from_pretrained(folder).eval()
    return Pair(folder, model, network, inputs, observation)


def test_the_example_says_what_generate_says(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    answer, same = capsys.readouterr().out.splitlines()
    assert same == "same as generate: True"
    assert int(answer.split()[4]) < int(answer.split()[1]) == 16


def test_trees_of_the_examples_family_are_exact_alone_and_in_batches(tmp_path: Path) -> None:
    pair, rng = mistral3(tmp_path / "m"), np.random.default_rng(0)
    contexts = [pair.model.open(pair.observation) for _ in range(3)]
    prefixes: list[Tokens] = [()] * 3
    for _ in range(3):
        trees = [random_tree(rng, 5) for _ in contexts]
        asked = [ScoreRequest(c, p, *t) for c, p, t in zip(contexts, prefixes, trees, strict=True)]
        for i, found in enumerate(pair.model.score_batch(asked)):
            assert_plain(pair, as_choices(found).logits, prefixes[i], *trees[i])
            prefixes[i] = ends_of(prefixes[i], *trees[i])[int(rng.integers(0, 6))]


def test_deep_features_count_and_are_kept_with_the_frame(tmp_path: Path) -> None:
    pair = load_pair("qwen3_vl", checkpoints.qwen3_vl(tmp_path / "m"))
    seen = pair.model.encoder.features
    deep = pair.model.open(pair.observation).score((7,))
    assert (seen.misses, seen.hits) == (1, 0)
    assert np.array_equal(pair.model.open(pair.observation).score((7,)), deep)
    assert (seen.misses, seen.hits) == (1, 1)
    # Without them the same weights say something else, so that the comparison above is none of nothing.
    object.__setattr__(pair.model.decoder, "family", QwenVL(pair.model.encoder.family.source))
    assert np.abs(pair.model.open(pair.observation).score((7,)) - deep).max() > 0.1


def test_marks_around_an_image_are_part_of_the_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Marked(Llava):
        def expand_prompt(
            self, ids: Tokens, image: Mapping[str, torch.Tensor], features: ImageFeatures
        ) -> Tokens:
            at = ids.index(checkpoints.IMAGE_ID)
            half = len(features.rows) // 2
            tile = (checkpoints.IMAGE_ID,) * half
            return (*ids[:at], 20, *tile, 21, *tile, 22, *ids[at + 1 :])

    folder = checkpoints.llava(tmp_path / "m")
    with monkeypatch.context() as patched:
        known_as(patched, "llava", Marked)
        marked = load_model(f"{folder},prompt=bare")
    plain = load_model(f"{folder},prompt=bare")
    context = marked.open(checkpoints.observation())
    found = context.score((7,), (8,), (0,))
    plain_context = plain.open(checkpoints.observation())
    plain_context.prefill()
    assert context.stats.prompt_tokens == plain_context.stats.prompt_tokens + 3
    network = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    prompt = marked.encoder.encode(checkpoints.observation())
    at = prompt.ids.index(checkpoints.IMAGE_ID)
    tile = [checkpoints.IMAGE_ID] * 8
    ids = torch.tensor([[*prompt.ids[:at], 20, *tile, 21, *tile, 22, *prompt.ids[at + 1 :], 7, 8]])
    with torch.inference_mode():
        wanted = network(input_ids=ids, **prompt.image).logits[0, -2:, :60].numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_the_cache_is_the_familys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(AnswerCache):
        gathers = 0

        def gather(self, columns: torch.Tensor) -> None:
            Counted.gathers += 1
            super().gather(columns)

    class Counting(Language):
        def cache(self) -> AnswerCache:
            return Counted()

    known_as(monkeypatch, "llama", Counting)
    context = load_model(checkpoints.llama(tmp_path / "m")).open(checkpoints.observation(image=False))
    wanted = context.score((7,))
    context.score((), tuple(range(5, 59)) * 2, (0,) * 54 + (1,) * 54)
    # Rows of another number in a pass: kernels of some processors round them in another way.
    assert np.allclose(context.score((7, 8), (9,), (0,))[0], context.score((7, 8))[0], atol=1e-5)
    assert Counted.gathers == context.stats.gathers > 0
    context.forget()
    assert np.allclose(context.score((7,)), wanted, atol=1e-4)
    assert isinstance(context._cache, Counted)


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        (
            "llama",
            {"final_logit_softcapping": 30.0},
            "'llama': final_logit_softcapping 30.0 is not",
        ),
        ("llama", {"embedding_multiplier": 12.0}, "'llama': embedding_multiplier 12.0 is not supported"),
        ("llama", {"mm_vision_tower": "tower"}, "'llama': the original LLaVA layout is not supported"),
        ("qwen2", {"layer_types": ["full_attention", "linear_attention"] * 2}, "'qwen2': .*linear_attention"),
        ("llama", {"sliding_window": 64}, "'llama': sliding-window attention"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 4}, "'qwen3': sliding-window attention"),
        ("llama", {"model_type": ""}, r"architecture '' is not supported \(known: llava"),
    ],
)
def test_what_is_not_covered_is_refused_with_the_family_and_the_reason(
    tmp_path: Path, family: str, changes: dict[str, Any], reason: str
) -> None:
    folder = getattr(checkpoints, family)(tmp_path / "m")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match=reason) as refused:
        load_model(folder)
    assert str(refused.value).startswith("cannot load m: architecture ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("network", "config", "missing"),
    [
        (GPT2LMHeadModel, GPT2Config(n_embd=32, n_layer=2, n_head=2), "its network has no model"),
        (
            OPTForCausalLM,
            OPTConfig(hidden_size=32, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2),
            "its decoder has no norm",
        ),
    ],
)
def test_a_network_of_another_shape_is_refused(
    tmp_path: Path, network: Any, config: Any, missing: str
) -> None:
    config.vocab_size, config.bos_token_id, config.eos_token_id = len(checkpoints.WORDS), 3, 2
    network(config).save_pretrained(tmp_path)
    checkpoints.tokenizer().save_pretrained(tmp_path)
    name = config.model_type
    with pytest.raises(ModelError, match=f"architecture '{name}' is not supported"):
        load_model(tmp_path)
    register_family(name, Language)
    with pytest.raises(ModelError, match=f"architecture '{name}': {missing}, as the decoder loop needs it"):
        load_model(tmp_path)


def test_a_name_is_given_once() -> None:
    with pytest.raises(ConfigError, match="already a family 'llama'"):
        register_family("llama", Llava)
    with pytest.raises(ConfigError, match="family name 'a b'"):
        register_family("a b", Llava)
    register_family("llama", Language)
    assert tuple(FAMILIES) == SHIPPED
    for name in SHIPPED:
        assert issubclass(FAMILIES[name], Family)


@pytest.mark.parametrize(
    "source", ["vlm_spec_decode.models.families.llava:PROJECTOR_FILES", "no_such_module", "torch:Tensor"]
)
def test_a_source_that_is_no_family_is_told_in_one_line(source: str) -> None:
    mine = FamilyRegistry()
    mine.add("mine", source)
    with pytest.raises(ConfigError, match="family 'mine'") as told:
        mine["mine"]
    assert "\n" not in str(told.value)


LOOK = """
import sys
from vlm_spec_decode.models.registry import ENGINES, FAMILIES
print("families:", *FAMILIES)
print("engines:", *ENGINES)
from vlm_spec_decode.cli import main as cli
assert cli.main(["cloud", "--help"]) == 0
assert not {"torch", "transformers", "my_family", "my_engine"} & set(sys.modules), "a name imports nothing"
from vlm_spec_decode.core.errors import VsdError
from vlm_spec_decode.models.loader import load_model
loaded = load_model(sys.argv[1]), load_model(sys.argv[2] + ",engine=transformers")
print("loaded:", *(model.card.model_id for model in loaded))
try:
    load_model(sys.argv[2])
except VsdError as error:
    print("broken:", type(error).__name__, error)
"""


def test_an_entry_point_is_enough(tmp_path: Path) -> None:
    """Another package's family and engine, each found by name, with no edit here and no import of it."""
    for file, name in ((EXAMPLE, "my_family"), (ROOT / "examples" / "07_new_engine.py", "my_engine")):
        (tmp_path / f"{name}.py").write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    package = tmp_path / "my_package-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        "[vlm_spec_decode.families]\nmistral3 = my_family\ngpt2 = not_there:FAMILY\nllama = my_family\n"
        "[vlm_spec_decode.engines]\ntransformers = my_engine\n"
    )
    seeing = runpy.run_path(str(EXAMPLE))["make_checkpoint"](tmp_path / "seeing")
    told = runpy.run_path(str(ROOT / "examples" / "07_new_engine.py"))["make_checkpoint"](tmp_path / "told")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(seeing), str(told)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert lines["families"] == " ".join((*SHIPPED, "mistral3", "gpt2"))
    assert lines["engines"] == "torch_loop vllm transformers"
    assert "[torch_loop|vllm|transformers]" in done.stdout
    assert lines["loaded"] == "seeing told"
    assert lines["broken"].startswith("ConfigError family 'gpt2' cannot be imported from not_there:FAMILY")
    assert "already a family 'llama'" in done.stderr


def test_the_page_of_models_names_every_family_and_every_option() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| `")]
    names = {name for cell, _ in rows for name in re.findall(r"`([^`]+)`", cell)}
    options = {field.name for field in fields(LoadOptions)} - {"revision"}
    assert set(SHIPPED) | options <= names
    (engines,) = (values for cell, values in rows if "`engine`" in cell)
    assert set(re.findall(r"\w+", engines)) == set(ENGINES)
