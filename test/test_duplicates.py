"""No six lines of code stand in two places: what is needed twice has one home.

A line counts without its indentation. Imports, docstrings, comments, blank lines and lines that hold nothing
but brackets do not count; a window of six counted lines that is found twice is a duplicate.
"""

from __future__ import annotations

import io
import tokenize
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("vlm_spec_decode", "benchmarks", "examples", "launch", "nodes")
WINDOW = 6

Line = tuple[int, str]


def sources() -> list[Path]:
    """Return every Python program outside the tests."""
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    return sorted(path for path in files if path.suffix == ".py" or path.parent.name == "nodes")


def code_lines(text: str) -> list[Line]:
    """Return number and text of the lines that count."""
    skipped: set[int] = set()
    statement: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            continue
        statement.append(token)
        if token.type == tokenize.NEWLINE:
            first = statement[0]
            is_import = first.type == tokenize.NAME and first.string in ("import", "from")
            if is_import or (first.type == tokenize.STRING and len(statement) == 2):
                skipped |= set(range(first.start[0], token.start[0] + 1))
            statement = []
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        bare = line.strip()
        if number not in skipped and not bare.startswith("#") and any(c.isalnum() for c in bare):
            found.append((number, bare))
    return found


def duplicates(files: dict[str, str]) -> list[tuple[str, int, str, int, int]]:
    """Return (file, line, other file, line there, counted lines) of every longest run that stands twice."""
    lines = {name: code_lines(text) for name, text in files.items()}
    places: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    for name, counted in lines.items():
        for at in range(len(counted) - WINDOW + 1):
            places[tuple(text for _, text in counted[at : at + WINDOW])].append((name, at))
    found = []
    for where in places.values():
        for index, (name, at) in enumerate(where):
            for other, there in where[index + 1 :]:
                if at and there and lines[name][at - 1][1] == lines[other][there - 1][1]:
                    continue  # the middle of a longer run
                if name == other and there < at + WINDOW:
                    continue  # a repetition within itself
                length = _length(lines[name][at:], lines[other][there:])
                found.append((name, lines[name][at][0], other, lines[other][there][0], length))
    return sorted(found)


def _length(ours: list[Line], theirs: list[Line]) -> int:
    count = 0
    for (_, our), (_, their) in zip(ours, theirs, strict=False):
        if our != their:
            break
        count += 1
    return count


def test_nothing_is_written_twice() -> None:
    files = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sources()}
    assert len(files) > 200
    told = [f"{a}:{n} and {b}:{m}, {count} lines" for a, n, b, m, count in duplicates(files)]
    assert not told, "\n".join(told)


def test_the_check_finds_a_copy_and_no_more() -> None:
    body = [f"    value_{n} = call({n})" for n in range(8)]
    one = "import os\n\n\ndef one():\n" + "\n".join(body)
    other = '"""A page."""\n\nimport os\n\n\nclass Two:\n    def two(self):\n        # a comment\n'
    other += "\n".join(f"    {line}" for line in body)
    assert duplicates({"a": one, "b": other}) == [("a", 5, "b", 9, 8)]
    changed = other.replace("call(4)", "call(40)")
    assert duplicates({"a": one, "b": changed}) == []
    imports = "from x import (\n" + "\n".join(f"    name_{n}," for n in range(9)) + "\n)\n"
    assert duplicates({"a": imports, "b": imports}) == []
