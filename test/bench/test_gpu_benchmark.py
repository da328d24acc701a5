"""benchmarks/gpu.py in small: every row, resumed where it stopped, and a profile that the simulator takes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vlm_spec_decode.core.profiles import load_hardware

ROOT = Path(__file__).parents[2]
PAIR = ["qwen3_vl_2b", "qwen3_vl_8b"]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import gpu

    return gpu


@pytest.fixture
def run(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def start(*options: str) -> dict[str, Any]:
        line = ["gpu.py", "--small", "--out", str(tmp_path), "--only", *PAIR, *options]
        monkeypatch.setattr(sys, "argv", line)
        assert bench.main() == 0
        document: dict[str, Any] = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
        return document

    return start


def test_a_run_goes_on_where_the_last_one_stopped(
    bench: Any, run: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = run("--minutes", "0")["left"]
    assert len(left) == 26
    assert not (tmp_path / "profiles").exists()
    # One model is finished, and then there is no memory for the other.
    build = bench.build

    def full(shape: Any, *args: Any, **options: Any) -> Any:
        if shape.name == "qwen3_vl_8b":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return build(shape, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(bench, "build", full)
        first = run()
    assert first["left"] == [name for name in left if name.startswith("qwen3_vl_8b/")]
    finished = run()
    assert finished["left"] == []
    assert set(finished["rows"]) == set(left)
    assert {name: finished["rows"][name] for name in first["rows"]} == first["rows"]
    for name, row in finished["rows"].items():
        assert row["ms"] > 0, name
    for name in ("qwen3_vl_8b/pass_8_nodes", "qwen3_vl_8b/pass_3_sessions", "qwen3_vl_8b/verdict_sampled"):
        assert finished["rows"][name]["bare_ms"] > 0
    (path,) = (tmp_path / "profiles").iterdir()
    profile = load_hardware(str(path))
    assert profile.name == "small_qwen3_vl_2b_8b"
    assert profile.verify_ms == pytest.approx(finished["rows"]["qwen3_vl_8b/pass_1_nodes"]["ms"], rel=1e-3)
    assert "random weights" in profile.source
    # Another format is another measurement, and does not mix with this one.
    with pytest.raises(SystemExit, match="name another --out"):
        run("--dtype", "float32")


def test_figures_are_of_what_was_measured(bench: Any, tmp_path: Path) -> None:
    rows = bench.Rows(tmp_path / "rows.json", {})
    assert bench.figures_of(rows) == []
    target = "qwen2_5_vl_7b"
    for name, ms in (
        ("pass_1_nodes", 10),
        ("pass_64_nodes", 12),
        ("pass_1_sessions", 10),
        ("pass_16_sessions", 25),
    ):
        rows.add(f"{target}/{name}", {"ms": ms, "bare_ms": 9})
    rows.add(f"{target}/verdict_greedy", {"ms": 0.2, "bare_ms": 10, "vocabulary": 152_064})
    found = {figure.name: (round(figure.value, 3), figure.holds) for figure in bench.figures_of(rows)}
    assert found == {
        f"nodes_{target}": (1.2, True),
        f"sessions_{target}": (2.5, False),
        f"choosing_greedy_{target}": (0.02, True),
    }


def test_without_a_gpu_nothing_is_measured(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu"])
    with pytest.raises(SystemExit, match="no GPU is at hand"):
        bench.main()
    sizes = {shape.name: shape.config for shape in bench.SHAPES}
    # Parameters of the layers and both ends, in thousands of millions, as the models are called.
    for name, billions in (
        ("qwen2_5_vl_3b", 3.1),
        ("qwen2_5_vl_7b", 7.6),
        ("qwen3_vl_8b", 8.2),
        ("llama_68m", 0.068),
    ):
        with torch.device("meta"):
            shape = next(shape for shape in bench.SHAPES if shape.name == name)
            stack = shape.stack_class(sizes[name])
        head = 0 if shape.is_tied else sizes[name].vocab_size * sizes[name].hidden_size
        count = sum(weights.numel() for weights in stack.parameters()) + head
        assert count / 1e9 == pytest.approx(billions, rel=0.02)
