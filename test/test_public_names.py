"""`import vlm_spec_decode`: which names it offers, and that none of them is imported before it is used."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import vlm_spec_decode as vsd
from test.test_startup import cpu_s

SOURCE = Path(vsd.__file__).read_text(encoding="utf-8")
WANTED = {
    *("Engine", "Robot", "Mission", "Observation", "Strategy", "errors", "VsdError", "CloudUnreachable"),
    *("register_strategy", "register_robot", "register_family", "register_engine"),
}
BAR_S = 0.060
"""What the import may cost over an interpreter that does nothing."""


def test_every_name_resolves_to_what_its_module_has() -> None:
    assert set(vsd.__all__) >= WANTED
    for name, module in vsd._PLACES.items():
        assert getattr(vsd, name) is getattr(importlib.import_module(module), name)
    assert vsd.errors.VsdError is vsd.VsdError
    assert set(dir(vsd)) == set(vsd.__all__)


def test_type_checkers_see_the_same_names_as_python() -> None:
    tree = ast.parse(SOURCE)
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    seen = {
        alias.name: node.module
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }
    assert seen.pop("errors") == "vlm_spec_decode.core"
    assert seen == vsd._PLACES


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_like_it"):
        vsd.nothing_like_it  # noqa: B018
    assert not hasattr(vsd, "nothing_like_it")
    assert list(vsd.__all__) == list(dict.fromkeys(vsd.__all__)), "no name twice"


def test_the_engine_itself_needs_no_optional_library() -> None:
    code = (
        "import json, sys; import vlm_spec_decode as vsd; [getattr(vsd, n) for n in vsd.__all__];"
        "print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    from vlm_spec_decode.core.extras import EXTRAS

    assert not set(json.loads(done.stdout)) & set(EXTRAS)


def test_the_import_costs_next_to_nothing() -> None:
    bare = min(cpu_s("-c", "pass") for _ in range(5))
    imported = min(cpu_s("-c", "import vlm_spec_decode") for _ in range(5))
    assert imported - bare <= BAR_S
