"""`vsd cloud --draft auto`: a copy of the draft is kept where it fits and helps, and not otherwise."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from test.models import checkpoints
from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.cloud import own_draft as module
from vlm_spec_decode.cloud.config import CloudConfig, check
from vlm_spec_decode.cloud.own_draft import fits, helps, load_target, measured, own_draft
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import VocabularyMismatch
from vlm_spec_decode.decoding.policy import DraftCosts
from vlm_spec_decode.models.engines import torch_loop
from vlm_spec_decode.models.engines.base import LoadedModel
from vlm_spec_decode.models.engines.torch_loop import require_own_loop
from vlm_spec_decode.models.loader import load_model, shipped

CONFIG = CloudConfig(language=language(True), insecure=True, kv_mib=1)
FAST, SLOW = DraftCosts(0.001, 0.01, 0.01), DraftCosts(0.02, 0.01, 0.01)


@pytest.fixture(scope="module")
def target() -> LoadedModel:
    return load_model(shipped("target"))


def test_a_copy_helps_if_good_drafts_beat_the_targets_own_step() -> None:
    assert helps(FAST)
    assert not helps(SLOW)
    assert not helps(replace(FAST, verify_s=0.1)), "a pass over drafts that takes as long as ten steps"


def test_the_gain_is_the_best_lengths() -> None:
    # T = 10, t = 5, α = 0.5: one step, 1.5 tokens in 15 ms; two, 1.75 in 20.
    assert DraftCosts(5, 10, 10).gain(0.5) == pytest.approx(1.0)
    assert DraftCosts(1, 10, 10).gain(0.9) > 3


def test_a_copy_fits_beside_the_answers_caches() -> None:
    assert fits(10, 30, 20)
    assert not fits(10, 29, 20)
    assert fits(10, None, 20), "memory that nobody can tell is tried"


@pytest.mark.parametrize(("costs", "is_kept"), [(FAST, True), (SLOW, False)])
def test_auto_keeps_the_shipped_draft_if_it_helps(
    target: LoadedModel, monkeypatch: pytest.MonkeyPatch, costs: DraftCosts, is_kept: bool
) -> None:
    monkeypatch.setattr(module, "measured", lambda *_: costs)
    monkeypatch.setattr(module, "free_bytes", lambda _: 1 << 33)
    found = own_draft(CONFIG, target)
    assert (found.model is not None) is is_kept
    assert found.reason.startswith("yes" if is_kept else "no")
    assert found.costs == costs


def test_auto_keeps_none_that_does_not_fit(target: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda _: 1 << 20)
    found = own_draft(CONFIG, target)
    assert found.model is None
    assert "do not fit into 1 MiB" in found.reason


def test_auto_serves_a_target_of_another_vocabulary_without_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is a weight of the draft read for it, nor of a target beside which a draft is named."""
    networks, load = list[str](), torch_loop.load_network

    def counted(family: Any) -> Any:
        networks.append(family.source.folder.name)
        return load(family)

    monkeypatch.setattr(torch_loop, "load_network", counted)
    monkeypatch.setattr(module, "free_bytes", lambda _: None)
    config = replace(CONFIG, model=str(checkpoints.llava(tmp_path / "other")))
    target, named = load_target(config)
    assert named is None
    assert own_draft(config, target).model is None
    for draft in ("shipped", "shipped:draft", str(shipped("draft"))):
        with pytest.raises(VocabularyMismatch, match=r"draft draft .* and target other .* differ"):
            own_draft(replace(config, draft=draft), target)
        with pytest.raises(VocabularyMismatch, match=r"draft draft .* and target other .* differ"):
            load_target(replace(config, draft=draft))
    assert networks == ["other"]


def test_a_named_draft_is_loaded_beside_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    both, family = threading.Barrier(2, timeout=60), torch_loop._family

    def meet(*given: Any) -> Any:
        both.wait()  # neither goes on before the other has begun
        return family(*given)

    monkeypatch.setattr(torch_loop, "_family", meet)
    config = replace(CONFIG, draft="shipped", dtype="bfloat16")
    target, draft = load_target(config)
    assert draft is not None
    assert (target.card.model_id, draft.card.model_id) == ("target", "draft")
    assert {require_own_loop(model).decoder.dtype for model in (target, draft)} == {torch.bfloat16}
    monkeypatch.setattr(module, "load_draft_for", None)  # it is not loaded again
    assert own_draft(config, target, draft).model is not None


@pytest.mark.parametrize("name", ["", "none"])
def test_a_cloud_without_a_draft_loads_none(target: LoadedModel, name: str) -> None:
    config = replace(CONFIG, draft=name)
    check(config)
    assert own_draft(config, target).model is None


@pytest.mark.parametrize(("draft_ms", "is_kept"), [(62, True), (620, False)])
def test_under_a_profile_its_costs_decide_and_not_this_machines(
    target: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, draft_ms: int, is_kept: bool
) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda _: 1 << 33)
    file = tmp_path / "slow.yaml"
    times = {"draft_ms": 72, "step_ms": 620, "verify_ms": 620, "prefill_ms": 620, "cloud_draft_ms": draft_ms}
    file.write_text("\n".join(f"{name}: {value}" for name, value in times.items()))
    found = own_draft(replace(CONFIG, profile=str(file)), target)
    assert found.costs == DraftCosts(draft_ms / 1000, 0.62, 0.62)
    assert (found.model is not None) is is_kept


def test_steps_are_measured_on_both_models(target: LoadedModel) -> None:
    costs = measured(load_model(shipped("draft")), target, WallClock())
    assert 0 < costs.step_s < costs.verify_s
    assert 0 < costs.plain_s < 10 * costs.verify_s
