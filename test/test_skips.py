"""The report of skips: what CI refuses, what it accepts, and that nothing slips by it."""

import json
from pathlib import Path

import pytest

from test.skips import ALLOWED, kind_of

pytest_plugins = ["pytester"]

CONFTEST = """
import sys
sys.path.insert(0, {root!r})
from test.skips import SkipReport

def pytest_addoption(parser):
    parser.addoption("--skips")

def pytest_configure(config):
    config.pluginmanager.register(SkipReport(config), "skip report")
"""

HEAD = "import pytest\ndef test_runs(): pass\n"
SKIPS = {
    "in a test": "def test_it(): pytest.skip({reason!r})",
    "by a mark": "@pytest.mark.skipif(True, reason={reason!r})\ndef test_it(): pass",
    "in a fixture": "@pytest.fixture\ndef it(): pytest.skip({reason!r})\ndef test_it(it): pass",
    "of a module": "pytest.skip({reason!r}, allow_module_level=True)",
    "by an import": "pytest.importorskip('no_such_module', reason={reason!r})",
}


@pytest.fixture
def session(pytester, monkeypatch):
    """Run a file of tests, in CI or not; return the exit code, output and report."""
    pytester.makeconftest(CONFTEST.format(root=str(Path(__file__).parents[1])))
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)

    def run(body, *arguments, ci="true"):
        monkeypatch.setenv("CI", ci)
        pytester.makepyfile(test_other="def test_other(): pass", test_file=HEAD + body)
        options = ("-p", "no:cacheprovider", "--skips", "skips.json", *arguments)
        run_it = pytester.runpytest_subprocess if "-n" in arguments else pytester.runpytest_inprocess
        done = run_it(*options)
        return done.ret, done.stdout.str(), json.loads((pytester.path / "skips.json").read_text())

    return run


@pytest.mark.parametrize("way", SKIPS)
def test_ci_fails_by_name_whichever_way_a_test_is_skipped(session, way):
    code, said, report = session(SKIPS[way].format(reason="no toaster here"))
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "1 other: no toaster here" in said
    assert "test_file.py" in said.split("skipped in CI")[1]
    (row,) = report["skipped"]
    assert (row["reason"], row["kind"], len(row["tests"])) == ("no toaster here", None, 1)


def test_nothing_slips_by_when_workers_share_the_tests(session, pytester):
    pytester.makepyfile(test_module="import pytest\n" + SKIPS["of a module"].format(reason="no kettle here"))
    code, said, report = session(SKIPS["in a test"].format(reason="no toaster here"), "-n", "2")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert said.count("1 other: no toaster here") == 1
    assert said.count("1 other: no kettle here") == 1, "two workers have seen the same module"
    assert (report["known"], report["ran"]) == (3, 3)


@pytest.mark.parametrize("kind", ALLOWED)
def test_ci_accepts_what_cannot_be_installed(session, kind):
    code, said, report = session(SKIPS["in a test"].format(reason=f"{kind}: not on this machine"))
    assert code == pytest.ExitCode.OK
    assert f"1 {kind}: {kind}: not on this machine" in said
    assert report["skipped"][0]["kind"] == kind


def test_at_home_a_skip_is_told_and_fails_nothing(session):
    code, said, report = session(SKIPS["by an import"].format(reason="no toaster here"), ci="")
    assert code == pytest.ExitCode.OK
    assert "1 other: no toaster here" in said
    assert not report["ci"]


def test_what_is_expected_to_fail_is_no_skip_and_a_selection_is_told(session):
    body = "@pytest.mark.xfail\ndef test_it(): assert 0\ndef test_more(): pass"
    code, _, report = session(body, "-k", "test_it or other")
    assert (code, report["skipped"]) == (pytest.ExitCode.OK, [])
    assert (report["known"], report["ran"]) == (4, 2)


def test_a_failure_stays_a_failure(session):
    body = SKIPS["in a test"].format(reason="no toaster here")
    assert session(body + "\ndef test_end(): pytest.exit('over', returncode=7)")[0] == 7


@pytest.mark.parametrize("reason", ["GPU", "GPU: no CUDA device", "launch_ros has no wheel", "RViz: none"])
def test_a_reason_that_begins_with_its_kind_is_of_it(reason):
    assert kind_of(reason) in ALLOWED


@pytest.mark.parametrize("reason", ["", "GPUs", "the file test_GPU.py", "no chromium; GPU: none", "rviz"])
def test_a_reason_that_only_mentions_one_is_not(reason):
    assert kind_of(reason) is None
