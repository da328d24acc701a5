"""What benchmarks/ledger.py keeps of parts that are measured at different times."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import ledger

    monkeypatch.setattr(ledger, "commit", lambda: "abc")
    return ledger


def test_parts_are_merged_in_order_and_run_again_only_if_the_code_or_the_size_changed(
    ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from figures import Figure

    ran: list[str] = []

    def part(name: str, value: float):  # type: ignore[no-untyped-def]
        return lambda: ran.append(name) or [Figure(name, value, 1.0, "at least", "so")]

    parts = {"first": part("first", 1.0), "second": part("second", 0.5), "absent": list}
    file = tmp_path / "rows.json"

    def measure(wanted: list[str], *, quick: bool = True) -> int:
        return ledger.measure(parts, ledger.Ledger(file, tuple(parts), quick=quick), wanted, resume=True)

    assert measure(["second"]) == 1, "a bar is missed"
    assert measure(["first"]) == 0
    assert measure(["absent"]) == 0
    rows = json.loads(file.read_text())["figures"]
    assert [(row["part"], row["holds"], row["made"]["commit"]) for row in rows] == [
        ("first", True, "abc"),
        ("second", False, "abc"),
    ]
    assert measure([*parts]) == 1, "what was measured before is told again"
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["figures"] == rows
    assert ran == ["second", "first"]
    measure(["first"], quick=False)
    assert ran == ["second", "first", "first"]
    assert [row["quick"] for row in json.loads(file.read_text())["figures"]] == [False, True]
