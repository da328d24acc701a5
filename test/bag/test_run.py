"""A whole replay with the shipped pair: rows, figures, report, resuming, comparing, the command."""

import json

import pytest
import yaml

from test.bag.walks import plain_walk
from vlm_spec_decode.bag.cli import GO2_A100, WIFI
from vlm_spec_decode.bag.questions import AskPlan
from vlm_spec_decode.bag.replay import Cell, ReplayConfig
from vlm_spec_decode.bag.run import RunConfig, compare_runs, load, run
from vlm_spec_decode.cli import main
from vlm_spec_decode.core.errors import BagError
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile, from_mapping

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    return plain_walk(tmp_path_factory.mktemp("bags") / "walk", seconds=4.0)


def config(walk, out, *strategies, **changes):
    cells = tuple(Cell(name, WIFI, GO2_A100) for name in strategies or ("autoregressive", "speculative"))
    return RunConfig(ReplayConfig((walk,), cells, **changes), out)


def test_every_strategy_says_the_same_and_the_report_holds_it(walk, tmp_path):
    document = run(config(walk, tmp_path, "autoregressive", "speculative", "hybrid"))
    rows = load(tmp_path, ["walk"]).rows
    by_question = {}
    for row in rows:
        by_question.setdefault(row["question"], set()).add(tuple(row["token_ids"]))
    assert len(by_question) == 3
    assert all(len(said) == 1 for said in by_question.values())
    cells = document["cells"]
    slow, fast = cells["autoregressive / wifi / go2_a100"], cells["speculative / wifi / go2_a100"]
    assert fast["total_s"]["value"] < slow["total_s"]["value"]
    assert slow["same_way"]["n"] == 3
    assert set(rows[0]["fates"]) == {"t"}
    page = (tmp_path / "report.html").read_text()
    assert "go to the red chair" in page
    assert "http" not in page.replace("http-equiv", ""), "the page must work offline"
    assert (tmp_path / "rows.csv").read_text().count("\n") == 10


def test_the_same_settings_give_the_same_rows_and_a_broken_run_goes_on(walk, tmp_path):
    whole, again = tmp_path / "whole", tmp_path / "again"
    run(config(walk, whole))
    lines = (whole / "walk.rows.jsonl").read_text().splitlines(keepends=True)
    again.mkdir()
    (again / "config.digest").write_text((whole / "config.digest").read_text())
    (again / "walk.rows.jsonl").write_text("".join(lines[:4]) + lines[4][:20])
    run(config(walk, again))
    assert (again / "walk.rows.jsonl").read_text() == "".join(lines)
    document = compare_runs(whole, again)
    assert all(f is None or f["p"] == pytest.approx(1.0) for cell in document.values() for f in cell.values())


def test_other_settings_do_not_mix_with_old_rows(walk, tmp_path):
    run(config(walk, tmp_path, plan=AskPlan(limit=1)))
    assert len(load(tmp_path, ["walk"]).rows) == 2
    run(config(walk, tmp_path, plan=AskPlan(limit=2)))
    assert len(load(tmp_path, ["walk"]).rows) == 4


def test_nothing_to_ask_about_is_said(walk, tmp_path):
    silent = plain_walk(tmp_path / "silent", seconds=0.5)
    with pytest.raises(BagError, match="no instruction"):
        run(config(silent, tmp_path / "out"))
    with pytest.raises(BagError, match="same name"):
        run(RunConfig(ReplayConfig((walk, walk), (Cell("speculative", WIFI, GO2_A100),)), tmp_path / "two"))


def test_the_command_ends_with_json_and_names_what_is_wrong(walk, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out"), "--limit", "1", "--json"]
    assert main(["replay", str(walk), *out]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["cells"]["speculative / wifi / go2_a100"]["answers"] == 1
    assert main(["replay", str(tmp_path / "none"), *out]) == 2
    assert "no such bag" in capsys.readouterr().out
    assert main(["replay", str(walk), "--strategy", "fast", *out]) == 2
    assert main(["replay", *out]) == 2


def test_the_default_profiles_are_the_ones_in_config(request):
    root = request.config.rootpath / "config"
    shipped = ((LinkProfile, WIFI, "links/wifi"), (HardwareProfile, GO2_A100, "profiles/go2_a100"))
    for kind, made, path in shipped:
        written = yaml.safe_load((root / f"{path}.yaml").read_text()) | {"source": made.source}
        assert from_mapping(kind, written) == made
