"""`vsd bench`: cells, resume, history, page, comparison."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vlm_spec_decode.bench import page, sweep
from vlm_spec_decode.bench.cells import Cell, summary
from vlm_spec_decode.bench.compare import compare_runs, holm, p_value
from vlm_spec_decode.bench.sweep import BenchConfig, cells_of, run_sweep
from vlm_spec_decode.cli import main as cli
from vlm_spec_decode.core.errors import ConfigError

SMALL = BenchConfig(
    strategies=("speculative", "colocated"), links=("lan", "go2_paper"), pairs=("synthetic:0.8",), answers=3
)


def small(out: Path, **changed: object) -> BenchConfig:
    return BenchConfig(**{f: getattr(SMALL, f) for f in SMALL.__slots__} | {"out": out} | changed)


def test_a_run_leaves_results_history_and_a_page(tmp_path: Path) -> None:
    document = run_sweep(small(tmp_path))
    assert document == json.loads((tmp_path / "bench.json").read_text())
    assert document["schema"] == "vsd-bench/1"
    assert len(document["cells"]) == 6  # the baseline comes along
    for row in document["cells"]:
        found = row["summary"]
        assert (row["cell"]["strategy"] == "autoregressive") == (found["speed_up"] == 1)
        assert len(row["answers"]) == 3
        assert row["timeline"]
    by = {(r["cell"]["strategy"], r["cell"]["link"]): r["summary"] for r in document["cells"]}
    assert by["speculative", "lan"]["speed_up"] > by["speculative", "go2_paper"]["speed_up"] > 1
    assert by["colocated", "lan"]["up_bytes"] < by["speculative", "lan"]["up_bytes"]
    text = (tmp_path / "index.html").read_text()
    assert text.count("<svg") == 5
    assert "http" not in text.replace("http://www.w3.org", "")


def test_the_page_says_why_a_controller_did_what_it_did() -> None:
    plain = {"cell": {"link": "lan", "strategy": "colocated"}, "why": []}
    mine = {"cell": {"link": "lan", "strategy": "hybrid"}, "why": ["3 rows < 4", ""]}
    far = {"cell": {"link": "lte", "strategy": "hybrid"}, "why": ["of no timeline"]}
    said = page._reasons([plain, mine, far])
    assert "Why hybrid did so" in said
    assert "<li>3 rows &lt; 4</li><li>nothing decided</li>" in said
    assert "colocated" not in said
    assert "of no timeline" not in said


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Cell] = []
    decode = sweep.answers_of

    def counted(cell, pair):  # type: ignore[no-untyped-def]
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(cell)
        return decode(cell, pair)

    monkeypatch.setattr(sweep, "answers_of", counted)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(small(tmp_path))
    with (tmp_path / "cells.jsonl").open("a") as file:
        file.write('{"key": "cut of')
    monkeypatch.setattr(sweep, "answers_of", lambda cell, pair: (ran.append(cell), decode(cell, pair))[1])
    document = run_sweep(small(tmp_path))
    assert len(ran) == len(set(ran)) == 6 == len(document["cells"])
    run_sweep(small(tmp_path))
    assert len(ran) == 6
    run_sweep(small(tmp_path, answers=2))
    assert len(ran) == 12
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 3


def test_an_answer_that_differs_is_no_result() -> None:
    row = {"cell": {"clock": "virtual"}, "answers": [{"said": "a"}]}
    with pytest.raises(ConfigError, match="something else"):
        summary(row, {"answers": [{"said": "b"}]})


def test_two_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = run_sweep(small(tmp_path / "a", answers=8, links=("lan",)))
    for row in document["cells"]:
        if row["cell"]["strategy"] == "speculative":
            for number, answer in enumerate(row["answers"]):
                answer["total_s"] *= 0.8 + 0.01 * number
    (tmp_path / "b.json").write_text(json.dumps(document))
    found = {d.cell.split(", ")[3]: d for d in compare_runs(tmp_path / "a", tmp_path / "b.json")}
    assert found["speculative"].is_significant
    assert found["speculative"].low <= found["speculative"].ratio <= found["speculative"].high
    assert 1.15 < found["speculative"].ratio < 1.25
    assert found["colocated"].ratio == 1
    assert not found["colocated"].is_significant
    assert cli.main(["bench", "compare", str(tmp_path / "a"), str(tmp_path / "b.json"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["significant"] for row in said["cells"]].count(True) == 1
    with pytest.raises(ConfigError):
        compare_runs(tmp_path / "a", tmp_path / "nothing.json")


def test_the_test_of_significance_keeps_its_level() -> None:
    rng = np.random.default_rng(1)
    false = np.mean([p_value(rng.normal(0, 1, 10)) < 0.05 for _ in range(400)])
    assert 0.02 < false < 0.09
    assert p_value(np.full(8, 0.1)) == 2 / 2**8
    assert p_value(np.full(20, 0.1)) < 0.001
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--strategies", "none"],
        ["--links", "none"],
        ["--profiles", "none"],
        ["--pairs", "none"],
        ["--clock", "none"],
        ["--objective", "none"],
        ["--answers", "99"],
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(arguments: list[str], tmp_path: Path) -> None:
    assert cli.main(["bench", *arguments, "--out", str(tmp_path)]) == 2


def test_the_command_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--pairs", "synthetic:0.8", "--strategies", "speculative", "--answers", "2"]
    assert cli.main(["bench", *arguments, "--out", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["cells"] == 2
    assert said["speed_up"]["speculative"] > 1


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_wall_clock_time_over_sockets(tmp_path: Path) -> None:
    config = BenchConfig(
        strategies=("speculative",),
        links=("lan",),
        pairs=("shipped",),
        clocks=("wall",),
        answers=1,
        out=tmp_path,
    )
    cells = run_sweep(config)["cells"]
    assert [c["cell"]["profile"] for c in cells] == ["measured", "measured"]
    assert cells[0]["answers"][0]["said"] == cells[1]["answers"][0]["said"]
    assert all(c["summary"]["total_s"] > 0.002 and c["summary"]["passes"] > 0 for c in cells)


@pytest.mark.parametrize("objective", ["latency", "balanced", "cost"])
def test_every_cell_finds_its_baseline(objective: str) -> None:
    cells = cells_of(BenchConfig(strategies=("hybrid", "colocated"), objective=objective, draft_length=2))
    assert {cell.baseline for cell in cells} < set(cells)
    assert {cell.objective for cell in cells if cell.strategy == "hybrid"} == {objective}


def test_runs_that_differ_in_a_setting_of_the_whole_run_are_compared(tmp_path: Path) -> None:
    for name, length in (("short", 1), ("long", 6)):
        run_sweep(small(tmp_path / name, links=("lan",), draft_length=length))
    found = {d.cell.split(", ")[3]: d for d in compare_runs(tmp_path / "short", tmp_path / "long")}
    assert set(found) == {"autoregressive", "speculative", "colocated"}
    assert found["autoregressive"].ratio == 1
    assert found["speculative"].ratio > 1, "six drafted tokens a round take less than one"
