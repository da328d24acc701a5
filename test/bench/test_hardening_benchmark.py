"""What benchmarks/hardening.py makes of its parts and of the reports that a test run leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
REASONS = {"launch_ros has no wheel": "launch_ros", "no toaster here": None}


@pytest.fixture
def hardening(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import hardening

    return hardening


def head() -> str:
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def write_reports(folder: Path, reasons: list[str], *, ran: int = 30, commit: str = "") -> None:
    skipped = [{"reason": reason, "kind": REASONS[reason], "tests": ["a", "b"]} for reason in reasons]
    for name, count, rows in (("shared", ran, skipped), ("alone", 12, [])):
        report = {"commit": commit or head(), "ci": True, "known": 42, "ran": count, "skipped": rows}
        (folder / f"{name}.json").write_text(json.dumps(report))


@pytest.fixture
def same_code(hardening: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working tree counts as what was committed."""
    monkeypatch.setattr(hardening, "is_of_this_code", lambda commit: commit == head())


@pytest.mark.parametrize(
    ("reasons", "value"), [([], 0), (["launch_ros has no wheel"], 0), (list(REASONS), 2)], ids=str
)
def test_only_what_could_be_installed_counts(
    hardening: ModuleType, same_code: None, tmp_path: Path, reasons: list[str], value: int
) -> None:
    write_reports(tmp_path, reasons)
    figure = hardening.skips(quick=True, folder=tmp_path)
    assert (figure.name, figure.value, figure.holds) == ("tests_skipped", value, value == 0)
    assert "42 tests" in figure.note
    assert ("2: no toaster here" in figure.note) == (value > 0)


@pytest.mark.parametrize(
    ("ran", "commit", "why"),
    [(29, "", "41 of 42 tests"), (30, "0" * 40, "at commit 0000000"), (0, "none", "no report")],
)
def test_a_run_that_was_another_or_not_whole_is_not_counted(
    hardening: ModuleType, same_code: None, tmp_path: Path, ran: int, commit: str, why: str
) -> None:
    if commit != "none":
        write_reports(tmp_path, [], ran=ran, commit=commit)
    figure = hardening.skips(quick=True, folder=tmp_path)
    assert not figure.holds
    assert why in figure.note


def test_the_commit_that_is_looked_at_is_this_one(hardening: ModuleType) -> None:
    assert not hardening.is_of_this_code("")
    assert not hardening.is_of_this_code("0" * 40)


def run(*arguments: str, cwd: Path) -> tuple[int, list[dict[str, object]]]:
    command = [sys.executable, str(cwd / "hardening.py"), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=100, check=False)
    return done.returncode, json.loads(done.stdout.splitlines()[-1])["figures"]


def test_a_part_that_dies_costs_its_own_figures_only(tmp_path: Path) -> None:
    for name in ("hardening.py", "figures.py", "ledger.py"):
        (tmp_path / name).write_text((ROOT / "benchmarks" / name).read_text())
    good = "Figure('dogs', float('inf'), 3, 'at least', str(quick))"
    (tmp_path / "hardening_bags.py").write_text(
        f"from figures import Figure\ndef figures(quick):\n    return [{good}]"
    )
    (tmp_path / "hardening_line.py").write_text("import os\ndef figures(quick):\n    os._exit(9)")
    code, found = run("--quick", "--only", "bags,line", cwd=tmp_path)
    assert code == 1
    assert [(row["name"], row["value"], row["bar"], row["holds"]) for row in found] == [
        ("dogs", 1e9, 3, True),
        ("line_measured", 0, 1, False),
    ]
    assert found[0]["note"] == "True"
    assert "exit code 9" in str(found[1]["note"])
    assert (tmp_path / "out" / "hardening" / "hardening.json").exists()
    assert run("--quick", "--only", "bags", cwd=tmp_path)[0] == 0
