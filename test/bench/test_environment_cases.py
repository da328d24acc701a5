"""The matrix of `benchmarks/hardening_environment.py` is what the bar asks for, and its verdicts can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import hardening_environment
from benchmarks.environment_cases import NODE, NODES, STOP, VSD, Case, cases
from vlm_spec_decode.cli.main import vsd


def test_every_command_and_node_is_in_the_matrix(tmp_path: Path) -> None:
    found = cases(tmp_path)
    assert len(found) >= 120
    assert len({case.name for case in found}) == len(found)
    assert {case.arguments[0] for case in found if case.kind == NODE} == set(NODES)
    commands = {case.arguments[0] for case in found if case.kind != NODE}
    assert set(vsd.list_commands(None)) <= commands  # type: ignore[arg-type]
    assert sum(case.kind == STOP for case in found) >= 30
    assert {code for case in found for code in case.codes} <= {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("kind", "ended", "said"),
    [
        (VSD, (1, "", "Traceback (most recent call last):\n  ...\nKeyError: 'x'"), "traceback"),
        (VSD, (102, "", "rcl"), "exit code 102"),
        (VSD, (2, "", ""), "silence"),
        (VSD, (2, "no json", "vsd: x"), "no JSON line"),
        (VSD, (2, '{"error": "ConfigError", "exit_code": 1}', "x"), "JSON says exit code 1"),
        (VSD, (2, '{"error": "InternalError", "exit_code": 2}', "x"), "no name of its own"),
        (STOP, (2, '{"ok": false}', ""), "did not arrive"),
        (VSD, (2, '{"error": "ConfigError", "exit_code": 2}', "x"), ""),
        (STOP, (2, '{"ok": true}', ""), ""),
    ],
)
def test_a_verdict_follows_what_was_seen(
    kind: str, ended: tuple[int, str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardening_environment, "_process", lambda *_: ended)
    case = Case("any", kind, ("stop", "--json"), (2,))
    assert said in hardening_environment.problem(case, tmp_path)
    assert bool(said) == bool(hardening_environment.problem(case, tmp_path))
