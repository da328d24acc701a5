"""`vsd cloud --draft auto`: a copy of the draft is kept where it fits and helps, and not otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.cloud import own_draft as module
from vlm_spec_decode.cloud.config import CloudConfig, check
from vlm_spec_decode.cloud.own_draft import fits, helps, measured, own_draft
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import VocabularyMismatch
from vlm_spec_decode.decoding.policy import DraftCosts
from vlm_spec_decode.models.engines.base import LoadedModel
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
    target: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise VocabularyMismatch("draft and target differ in vocabulary")

    monkeypatch.setattr(module, "assert_same_vocabulary", refuse)
    monkeypatch.setattr(module, "free_bytes", lambda _: None)
    assert own_draft(CONFIG, target).model is None
    with pytest.raises(VocabularyMismatch):
        own_draft(replace(CONFIG, draft="shipped"), target)


@pytest.mark.parametrize("name", ["", "none"])
def test_a_cloud_without_a_draft_loads_none(target: LoadedModel, name: str) -> None:
    config = replace(CONFIG, draft=name)
    check(config)
    assert own_draft(config, target).model is None


def test_steps_are_measured_on_both_models(target: LoadedModel) -> None:
    costs = measured(load_model(shipped("draft")), target, WallClock())
    assert 0 < costs.step_s < costs.verify_s
    assert 0 < costs.plain_s < 10 * costs.verify_s
