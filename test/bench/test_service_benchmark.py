"""What benchmarks/service.py counts, without the processes around it."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]


def test_waiting_for_answers_ends_without_a_terminal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import service_faults

    bar = service_faults.tqdm(disable=True)
    askers = [SimpleNamespace(outcomes=Counter(right=4)), SimpleNamespace(outcomes=Counter(right=1, wrong=1))]
    assert service_faults._done(askers, bar) == 6
    assert service_faults._done(askers, bar) == 6
