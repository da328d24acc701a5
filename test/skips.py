"""What a test run skips: told at its end, written to a file, and in CI refused unless it cannot be installed.

A pytest plugin, registered by conftest.py. Skips of modules count as well as those of tests; with xdist the
workers hand over what they skip while they collect, which xdist itself drops.

    pytest --skips FILE     writes the counts as JSON, for benchmarks/hardening.py
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ALLOWED = ("launch_ros", "RViz", "GPU")
"""First words of the reasons that CI accepts: what has no package in a registry, and a device."""

FAILED = "skipped in CI, where only {allowed} may be missing: install it in .ci/setup, or do without it"


def kind_of(reason: str) -> str | None:
    """Return which of the ALLOWED a reason begins with, as a word of its own; None: another."""
    words = reason.replace(":", " ").split()
    return next((kind for kind in ALLOWED if words[:1] == [kind]), None)


def in_ci() -> bool:
    """Return whether this run is continuous integration, by the variable that CI services set."""
    return os.environ.get("CI", "").lower() in {"true", "1", "yes"}


class SkipReport:
    """Collects the skips of a session and judges them at its end."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._skips: dict[str, str] = {}  # what was skipped -> why
        self._ran: set[str] = set()
        self._known = 0

    @property
    def refused(self) -> dict[str, str]:
        """What may not be skipped in CI."""
        return {name: reason for name, reason in self._skips.items() if kind_of(reason) is None}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Count the tests before a selection (-m, -k) takes some away."""
        self._known = len(items)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a test that ran or was skipped; an expected failure has run."""
        self._ran.add(report.nodeid)
        if report.skipped and not hasattr(report, "wasxfail"):
            self._skips[report.nodeid] = reason_of(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a module that was skipped as a whole."""
        if report.skipped:
            self._skips[report.nodeid] = reason_of(report)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take over what an xdist worker has collected."""
        told = getattr(node, "workeroutput", {})
        self._skips |= told.get("skipped_modules", {})
        self._known = max(self._known, told.get("known_tests", 0))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        """Fail a session of CI that skipped what could be installed, and write the file."""
        is_worker = hasattr(self._config, "workerinput")
        if is_worker:  # before xdist sends it
            self._config.workeroutput["skipped_modules"] = self._skips
            self._config.workeroutput["known_tests"] = self._known
        yield
        if is_worker:
            return
        passed = session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        if self.refused and in_ci() and passed:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if path := self._config.getoption("skips"):
            self._write(Path(path))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print each reason with the number of tests that it took."""
        if not self._skips:
            return
        terminalreporter.section("skipped, by reason")
        for reason, names in by_reason(self._skips).items():
            terminalreporter.line(f"{len(names):4} {kind_of(reason) or 'other'}: {reason}")
        if self.refused and in_ci():
            terminalreporter.section(FAILED.format(allowed=", ".join(ALLOWED)), red=True)
            for name, reason in sorted(self.refused.items()):
                terminalreporter.line(f"{name}: {reason}", red=True)

    def _write(self, path: Path) -> None:
        reasons = [
            {"reason": reason, "kind": kind_of(reason), "tests": sorted(names)}
            for reason, names in by_reason(self._skips).items()
        ]
        document = {"date": time.strftime("%Y-%m-%d %H:%M:%S"), "commit": _commit(self._config.rootpath)}
        document |= {"ci": in_ci(), "known": self._known, "ran": len(self._ran), "skipped": reasons}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return why something was skipped, without pytest's own word before it."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ").strip() or "no reason given"


def by_reason(skips: dict[str, str]) -> dict[str, list[str]]:
    """Return the names of each reason, the most frequent first."""
    found = defaultdict(list)
    for name, reason in skips.items():
        found[reason].append(name)
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def _commit(root: Path) -> str:
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout.strip()
