"""CONTRIBUTING.md is true: its worked examples are applied to a copy of the package, which then has them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
Patch = tuple[str, str, list[str]]
"""The file that is read, the file that is written, and the hunks."""

ADDED = """
from vlm_spec_decode.models.registry import ENGINES, FAMILIES
from vlm_spec_decode.robot.registry import ROBOTS
from vlm_spec_decode.ros.nodes.monitor import PARAMETERS
from vlm_spec_decode.strategies.registry import STRATEGIES
import vlm_spec_decode
print(vlm_spec_decode.__file__)
for kind, name in ((STRATEGIES, "adaptive_length"), (ROBOTS, "rover"), (FAMILIES, "mistral3"),
                   (ENGINES, "transformers")):
    found = kind.find(name)
    print(name, (found if isinstance(found, type) else type(found)).__name__)
print([each.name for each in PARAMETERS])
"""


def patches() -> list[Patch]:
    """Return the page's diffs."""
    found: list[Patch] = []
    for block in re.findall(r"^```diff\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^(?=--- a/)", block, flags=re.MULTILINE)[1:]:
            head, *hunks = re.split(r"^@@\n", part, flags=re.MULTILINE)
            names = re.fullmatch(r"--- a/(\S+)\n\+\+\+ b/(\S+)\n", head)
            assert names, head
            found.append((names[1], names[2], hunks))
    return found


def applied(text: str, hunks: list[str]) -> str:
    """Return the text after the hunks; the old lines of each stand in it once."""
    assert hunks
    for hunk in hunks:
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        new = "".join(line[1:] for line in lines if line[0] in " +")
        found = [match.start() for match in re.finditer(rf"^(?={re.escape(old)})", text, re.MULTILINE)]
        assert len(found) == 1, hunk
        text = text[: found[0]] + new + text[found[0] + len(old) :]
    return text


def test_there_is_one_example_of_each_kind_and_no_section_twice() -> None:
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    assert len(headings) == len(set(headings))
    kinds = {"A strategy", "A robot", "A VLM family", "An engine", "A ROS parameter"}
    assert kinds | {"Glossary", "Reporting a bug"} <= set(headings)


def test_an_example_edits_one_file_besides_its_own_at_most() -> None:
    found = patches()
    added = [new for old, new, _ in found if old != new]
    edited = [new for old, new, _ in found if old == new]
    assert (len(added), len(edited)) == (4, 5)
    assert not any((ROOT / new).exists() for new in added)


@pytest.mark.slow
@pytest.mark.ros
def test_the_examples_diffs_add_what_they_say(tmp_path: Path) -> None:
    package = tmp_path / "vlm_spec_decode"
    shutil.copytree(ROOT / "vlm_spec_decode", package, ignore=shutil.ignore_patterns("assets", "__pycache__"))
    (package / "assets").symlink_to(ROOT / "vlm_spec_decode" / "assets")
    for old, new, hunks in patches():
        source = tmp_path / old if old == new else ROOT / old
        (tmp_path / new).write_text(applied(source.read_text(encoding="utf-8"), hunks), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", ADDED],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    where, *kinds, parameters = done.stdout.splitlines()
    assert Path(where).parent == package
    assert kinds == [
        "adaptive_length Strategy",
        "rover RobotKind",
        "mistral3 Mistral3",
        "transformers ForwardEngine",
    ]
    assert "path_step_m" in parameters


@pytest.mark.parametrize(
    ("text", "hunk", "wanted"),
    [("a\nb\nc\n", " a\n-b\n+d\n", "a\nd\nc\n"), ("a\nb\n", "-c\n", None), ("a\na\n", "-a\n", None)],
)
def test_a_hunk_is_applied_where_it_fits_and_only_there(text: str, hunk: str, wanted: str | None) -> None:
    if wanted is None:
        with pytest.raises(AssertionError):
            applied(text, [hunk])
    else:
        assert applied(text, [hunk]) == wanted
