"""What pages, docstrings and comments refer to exists: files, modules, and names within modules."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vlm_spec_decode"
FOLDERS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
DATA_ENDINGS = {"json", "yaml", "key", "key_secret", "py"}
"""What ends a file's name that begins like a module, such as `cloud.key` or `sim.launch.py`."""

NO_MODULES = {"mission.cancel", "mission.stop", "robot.emergency_stop", "robot.release"}
"""Methods of a variable that is called like a folder of the package, on pages."""

DOTTED = re.compile(
    rf"(?:`(?:vlm_spec_decode\.)?|\bvlm_spec_decode\.)((?:{'|'.join(FOLDERS)})(?:\.\w+)+)"
    r"(?=`|\(\)`|[^\w.`(]|\.\s)"
)
FILE = re.compile(
    r"(?<![\w/.:@-])(?:[ab]/(?=examples/|vlm_spec_decode/))?"
    r"((?:\.ci/)?\w+(?:/\w+)*/[\w.]+\.(?:py|md|yaml|json|toml|ipynb))(?!\w)"
)
GENERATED = ("out/", "my_package/", "keys/", "walks/", "src/")
"""Folders that commands make, or that are the reader's own."""


def texts() -> dict[str, str]:
    """Return every page, and every Python source, by its path."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout: what belongs to the project is not known")
    names = [name for name in done.stdout.splitlines() if name.endswith((".md", ".py"))]
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in names if (ROOT / name).exists()}


@functools.cache
def names_in(module: Path) -> frozenset[str]:
    """Return what a module defines or imports, fields and methods too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
    return frozenset(found)


def leads_somewhere(name: str) -> bool:
    """Tell whether a dotted name below the package is a package, a module, or what one defines."""
    place, parts = PACKAGE, name.split(".")
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    module = place / f"{parts[0]}.py" if parts else place / "__init__.py"
    if parts and module.exists():
        parts.pop(0)
    else:
        module = place / "__init__.py"
    return module.exists() and set(parts) <= names_in(module)


def referring_part(name: str, text: str) -> str:
    """Return what refers to the present: not the old names at the left of the page of moved modules.

    Of a program, the lines with a backtick: imports are checked by Python.
    """
    if name == "docs/moved_modules.md":
        return "\n".join(line.rpartition(" | ")[2] for line in text.splitlines())
    return text if name.endswith(".md") else "\n".join(line for line in text.splitlines() if "`" in line)


def added_by_examples() -> list[str]:
    """Return the files that the worked examples of CONTRIBUTING.md would add."""
    return re.findall(
        r"^\+\+\+ b/(\S+)$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE
    )


def test_modules_and_names_that_are_referred_to_exist() -> None:
    wrong, seen = [], 0
    new = {name.removesuffix(".py").partition("/")[2].replace("/", ".") for name in added_by_examples()}
    for path, text in texts().items():
        for name in DOTTED.findall(referring_part(path, text)):
            seen += 1
            if name.rpartition(".")[2] in DATA_ENDINGS or name in NO_MODULES or name in new:
                continue
            if not leads_somewhere(name):
                wrong.append(f"{path}: {name}")
    assert seen > 200
    assert wrong == []


def test_files_that_are_referred_to_exist() -> None:
    wrong, seen = [], 0
    pages = {path: text for path, text in texts().items() if path.endswith(".md")}
    added = added_by_examples()
    for path, text in pages.items():
        for name in FILE.findall(text):
            bases = (ROOT, PACKAGE, ROOT / "test", (ROOT / path).parent)
            seen += 1
            if name in added or name.startswith(GENERATED) or any((base / name).exists() for base in bases):
                continue
            wrong.append(f"{path}: {name}")
    assert seen > 150
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "exists"),
    [
        ("core.types", True),
        ("core.types.Observation", True),
        ("cloud.replicas", True),
        ("decoding.session.Session.commit", True),
        ("cloud.desk", False),
        ("core.types.NoSuchThing", False),
        ("strategies.hybrid.no_such_module", False),
    ],
)
def test_the_check_tells_them_apart(name: str, exists: bool) -> None:
    assert leads_somewhere(name) == exists
