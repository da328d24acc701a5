"""A pair of other vocabularies is refused by name before any weights are read; loads that wait, end."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from test.models import checkpoints
from vlm_spec_decode.core.errors import ModelError, VocabularyMismatch
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.edge.factory import bring_up
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.models import loader
from vlm_spec_decode.models.engines import torch_loop
from vlm_spec_decode.models.loader import load_draft_and_target, load_draft_for, load_model
from vlm_spec_decode.models.vocabulary import Agreement, Vocabulary

WORDS = [*checkpoints.WORDS[:-1], "another"]
ONE, OTHER = Vocabulary("one", "abc", 60), Vocabulary("other", "xyz", 60)


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The checkpoints whose weights are read, by folder."""
    found, load = list[str](), torch_loop.load_network

    def counted(family: Any) -> Any:
        found.append(family.source.folder.name)
        return load(family)

    monkeypatch.setattr(torch_loop, "load_network", counted)
    return found


def test_a_pair_is_loaded_in_order(tmp_path: Path, networks: list[str]) -> None:
    draft, target = checkpoints.llama(tmp_path / "draft"), checkpoints.llava(tmp_path / "target")
    models = load_draft_and_target(draft, f"{target},dtype=bfloat16")
    assert [model.card.model_id for model in models] == ["draft", "target"]
    assert [model.card for model in models] == [
        load_model(draft).card,
        load_model(target, dtype="bfloat16").card,
    ]
    assert sorted(networks) == ["draft", "draft", "target", "target"]


def test_a_pair_of_other_vocabularies_is_refused_before_weights_are_read(
    tmp_path: Path, networks: list[str]
) -> None:
    draft, target = checkpoints.llama(tmp_path / "stranger", WORDS), checkpoints.llava(tmp_path / "target")
    with pytest.raises(
        VocabularyMismatch, match=r"^draft stranger \(.*\) and target target \(.*\) differ in vocabulary$"
    ):
        load_draft_and_target(draft, target)
    with pytest.raises(VocabularyMismatch, match=r"^draft target \(.* and target stranger \("):
        load_draft_and_target(target, draft)
    assert networks == []


@pytest.mark.parametrize("broken", ["draft", "target"])
def test_a_load_that_fails_early_stops_the_one_that_waits_for_it(
    tmp_path: Path, networks: list[str], broken: str
) -> None:
    pair = [checkpoints.llama(tmp_path / name) for name in ("draft", "target")]
    (tmp_path / broken / "config.json").unlink()
    with pytest.raises(ModelError, match=rf"^cannot load {broken}: no readable config"):
        load_draft_and_target(pair[0], pair[1])
    assert networks == []


def test_a_draft_for_a_loaded_target_is_refused_before_its_weights_are_read(
    tmp_path: Path, networks: list[str]
) -> None:
    target = load_model(checkpoints.llava(tmp_path / "target")).card
    stranger, friend = (
        checkpoints.llama(tmp_path / "stranger", WORDS),
        checkpoints.llama(tmp_path / "friend"),
    )
    with pytest.raises(VocabularyMismatch, match=r"^draft stranger "):
        load_draft_for(target, stranger)
    assert networks == ["target"]
    assert load_draft_for(target, friend).card.model_id == "friend"


@pytest.mark.parametrize("same", [True, False])
def test_engines_that_say_nothing_while_they_load_are_compared_afterwards(
    monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    """Beside an engine of others loads follow each other; none waits for the other one."""
    threads = []

    def load(source: str, **_: Any) -> Any:
        threads.append(threading.current_thread())
        return SimpleNamespace(card=ONE if same or source == "draft" else OTHER)

    monkeypatch.setattr(loader, "load_model", load)
    monkeypatch.setattr(loader, "_wait_for_each_other", lambda _: False)
    if same:
        assert [model.card for model in load_draft_and_target("draft", "target")] == [ONE, ONE]
    else:
        with pytest.raises(VocabularyMismatch, match=r"draft one .* and target other "):
            load_draft_and_target("draft", "target")
    assert threads == [threading.current_thread()] * 2


def test_the_first_of_two_waits_for_the_other_ones_vocabulary() -> None:
    agreement, seen = Agreement(beside=True), list[str]()

    def tell() -> None:
        agreement.tell("draft", ONE)
        seen.append("went on")

    waits = threading.Thread(target=tell)
    waits.start()
    waits.join(0.1)
    assert seen == []
    agreement.tell("target", ONE)
    waits.join(10)
    assert seen == ["went on"]


def test_a_strategy_without_drafts_needs_no_draft(tmp_path: Path) -> None:
    """The draft that ships has another vocabulary; nobody asks it."""
    target = str(checkpoints.llama(tmp_path / "target"))
    settings = EdgeSettings(target=target, strategy="autoregressive", grammar=False, max_tokens=3)
    runtime = bring_up(settings)
    *_, last = runtime.engine.answer(Observation(None, "go to the red chair"))
    assert last.result is not None
    assert len(last.result.tokens) == 3
    assert runtime.target[0] == "target"
    with pytest.raises(VocabularyMismatch):
        bring_up(replace(settings, strategy="hybrid"))


def test_a_folder_that_is_not_there_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "load_model", lambda *_, **__: pytest.fail("loaded"))
    for given in ({"target": str(tmp_path / "none")}, {"draft": f"{tmp_path}/none,dtype=bfloat16"}):
        with pytest.raises(ModelError, match=r"there is no folder .*none"):
            bring_up(EdgeSettings(**given))
