"""How the package is cut: how many modules, how long, and that no imports go round in a circle."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vlm_spec_decode"
MAX_MODULES = 344
MAX_SHORT_MODULES, SHORT_LINES = 20, 50
MAX_LINES = 550


def lines_of_modules() -> dict[str, int]:
    """Return the lines of every module; a package's `__init__.py` is its name and page, no module."""
    paths = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    return {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import one another, each sorted. Tarjan's strong components."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    open_modules: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        open_modules.append(module)
        for other in sorted(imports.get(module, ())):
            if other not in order:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in open_modules:
                lowest[module] = min(lowest[module], order[other])
        if lowest[module] == order[module]:
            at = open_modules.index(module)
            group = open_modules[at:]
            del open_modules[at:]
            if len(group) > 1 or module in imports.get(module, ()):
                found.append(sorted(group))

    for module in sorted(imports):
        if module not in order:
            visit(module)
    return found


def test_there_are_not_too_many_modules_and_few_are_short() -> None:
    lines = lines_of_modules()
    inits = list(PACKAGE.rglob("__init__.py"))
    short = sorted(name for name, count in lines.items() if count <= SHORT_LINES)
    told = f"{len(lines)} modules, {len(lines) + len(inits)} with __init__.py; {len(short)} short: {short}"
    assert 100 < len(lines) <= MAX_MODULES, told
    assert len(short) <= MAX_SHORT_MODULES, told


def test_no_module_is_too_long() -> None:
    lines = {name: count for name, count in lines_of_modules().items() if count > MAX_LINES}
    assert lines == {}


def test_an_init_holds_no_code_of_its_own() -> None:
    """So that to leave these files out of the count hides nothing; the public names are the one exception."""
    inits = [path for path in PACKAGE.rglob("__init__.py") if path != PACKAGE / "__init__.py"]
    long = {str(path): path for path in inits if len(path.read_text(encoding="utf-8").splitlines()) > 30}
    assert long == {}


def test_imports_never_go_round_in_a_circle() -> None:
    """Imports inside functions and those for type checkers count too."""
    graph = grimp.build_graph("vlm_spec_decode", cache_dir=None)
    # The package itself refers to its public names, which Python imports when they are first used.
    modules = graph.modules - {"vlm_spec_decode"}
    imports = {module: graph.find_modules_directly_imported_by(module) for module in modules}
    assert len(list(chain.from_iterable(imports.values()))) > 500
    assert circles(imports) == []


@pytest.mark.parametrize(
    ("imports", "wanted"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}, [["a", "b", "c"]]),
        ({"a": {"a"}, "b": {"c"}, "c": {"b"}}, [["a"], ["b", "c"]]),
    ],
)
def test_the_check_finds_circles(imports: dict[str, set[str]], wanted: list[list[str]]) -> None:
    assert circles(imports) == wanted
