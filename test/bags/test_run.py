"""A whole replay with the shipped pair: rows, figures, report, resuming, comparing, the command."""

import json
import os
import shutil
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import yaml

from test.bags.walks import Walk, plain_walk
from vlm_spec_decode.bags import run as bags_run
from vlm_spec_decode.bags.questions import AskPlan
from vlm_spec_decode.bags.replay import Cell, ReplayChoice, ReplayConfig, Replayer
from vlm_spec_decode.bags.run import RunConfig, Workers, load, run
from vlm_spec_decode.bags.settings import SAMPLE, ReplaySettings
from vlm_spec_decode.cli.main import main
from vlm_spec_decode.core.config import from_mapping
from vlm_spec_decode.core.errors import BagError, ConfigError
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile, load_hardware, load_link
from vlm_spec_decode.edge.factory import load_pair

pytestmark = pytest.mark.timeout(180)

WIFI, GO2_A100 = load_link("wifi"), load_hardware("go2_a100")


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
    document = run(replace(config(walk, again), compare=whole))["compared_with_run"]["cells"]
    figures = [figure for cell in document.values() for figure in cell.values() if figure]
    assert figures
    assert all(f["p"] == pytest.approx(1.0) for f in figures)
    assert all(f["after"] == f["before"] for f in figures)
    assert f"Compared with {whole}" in (again / "report.html").read_text()
    for compare, why in ((whole, "elsewhere"), (tmp_path / "none", "no results")):
        with pytest.raises(BagError, match=why):
            run(replace(config(walk, whole), compare=compare))
    with pytest.raises(BagError, match="share no way"):
        run(replace(config(walk, again, "hybrid"), compare=whole))


def test_a_bag_that_was_recorded_anew_is_another_bag(tmp_path):
    walk = plain_walk(tmp_path / "walk", seconds=0.5)
    asked = config(walk, tmp_path / "out").replay
    before = bags_run.state_of(asked)
    assert bags_run.state_of(asked) == before
    os.utime(next(walk.glob("*.mcap")), (1, 1))
    assert bags_run.state_of(asked) != before
    assert bags_run.state_of(replace(asked, target=str(tmp_path))) != bags_run.state_of(asked)


def test_however_many_work_on_it_the_rows_are_the_same(walk, tmp_path, monkeypatch):
    # Threads take the place of processes, which would each import everything again.
    monkeypatch.setattr(bags_run, "ProcessPoolExecutor", lambda count, **_: ThreadPoolExecutor(1))
    alone, together = tmp_path / "alone", tmp_path / "together"
    one = config(walk, alone, "speculative")
    run(one)
    run(replace(one, out=together, workers=Workers(jobs=2)))
    assert (together / "walk.rows.jsonl").read_bytes() == (alone / "walk.rows.jsonl").read_bytes()


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_rows(walk, tmp_path, monkeypatch, request):
    ray = pytest.importorskip("ray")
    alone, together = tmp_path / "alone", tmp_path / "together"
    one = config(walk, alone, "speculative")
    run(one)
    monkeypatch.setenv("PYTHONPATH", str(request.config.rootpath))  # for its workers
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    loopback = {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
    ray.init("local", num_cpus=1, log_to_driver=False, **loopback)
    address = ray.get_runtime_context().gcs_address
    try:
        run(replace(one, out=together, workers=Workers(1, address)))
    finally:
        ray.shutdown()
    assert (together / "walk.rows.jsonl").read_bytes() == (alone / "walk.rows.jsonl").read_bytes()


def test_without_ray_one_line_says_so(walk, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="needs Ray"):
        run(replace(config(walk, tmp_path), workers=Workers(1, "auto")))


def test_other_settings_do_not_mix_with_old_rows(walk, tmp_path):
    run(config(walk, tmp_path, plan=AskPlan(limit=1)))
    assert len(load(tmp_path, ["walk"]).rows) == 2
    run(config(walk, tmp_path, plan=AskPlan(limit=2)))
    assert len(load(tmp_path, ["walk"]).rows) == 4


def test_a_run_is_made_again_from_what_its_bag_says_and_other_models_are_named(tmp_path):
    pair = load_pair()
    hot = {"temperature": 2.0, "seed": 11, "rule": "coupled", "max_tokens": 24}
    revisions = [model.card.revision for model in (pair.target, pair.draft)]
    paths = {}
    for name, models, settings in (("then", revisions, hot), ("cold", [revisions[0], "another"], {})):
        bag = Walk(tmp_path / name)
        bag.facts(0.0, *models, **settings)
        bag.compressed(0.5)
        bag.answer(1.0, 0.5, "go to the red chair", token_ids=(5, 6))
        bag.close()
        paths[name] = tmp_path / name
    cells = (Cell("autoregressive", WIFI, GO2_A100),)
    said, faults = {}, {}
    for name, bag, chosen in (
        ("as recorded", "then", ReplayChoice()),
        ("by hand", "cold", ReplayChoice("coupled", 2.0, 11, 24)),
        ("without", "cold", ReplayChoice()),
    ):
        faults[name] = Counter()
        rows = Replayer(ReplayConfig((), cells, chosen=chosen)).rows(paths[bag], faults[name])
        ((_, (row,)),) = rows
        said[name] = row["token_ids"]
    assert said["as recorded"] == said["by hand"] != said["without"]
    assert not faults["as recorded"]
    assert any("another draft" in fault for fault in faults["without"])


def test_nothing_to_ask_about_is_said(walk, tmp_path):
    silent = plain_walk(tmp_path / "silent", seconds=0.5)
    with pytest.raises(BagError, match="no instruction"):
        run(config(silent, tmp_path / "out"))
    with pytest.raises(BagError, match="same name"):
        run(RunConfig(ReplayConfig((walk, walk), (Cell("speculative", WIFI, GO2_A100),)), tmp_path / "two"))


def test_messages_that_were_not_read_are_in_the_report_and_in_the_json(walk, tmp_path, capsys):
    bag = shutil.copytree(walk, tmp_path / "walk")
    said = (bag / "metadata.yaml").read_text()
    assert "message_count: 16" in said
    (bag / "metadata.yaml").write_text(said.replace("message_count: 16", "message_count: 21"))
    out = tmp_path / "out"
    assert main(["replay", str(bag), "--jobs", "1", "--out", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["unread_messages"] == {"walk": 5}
    assert "messages not read" in (out / "report.html").read_text()


def test_the_command_ends_with_json_and_names_what_is_wrong(walk, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out"), "--limit", "1", "--json"]
    assert main(["replay", str(walk), *out]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["cells"]["hybrid / wifi / go2_a100"]["answers"] == 1
    assert main(["replay", str(tmp_path / "none"), *out]) == 2
    assert "no such bag" in capsys.readouterr().out
    assert main(["replay", str(walk), "--strategy", "fast", *out]) == 2
    assert main(["replay", *out]) == 2


def test_the_default_profiles_are_the_ones_in_config(request):
    root = request.config.rootpath / "config"
    defaults = ReplaySettings()
    shipped = (
        (LinkProfile, load_link(*defaults.links), "links/wifi"),
        (HardwareProfile, load_hardware(*defaults.profiles), "profiles/go2_a100"),
    )
    for kind, made, path in shipped:
        written = yaml.safe_load((root / f"{path}.yaml").read_text()) | {"source": made.source}
        assert from_mapping(kind, written) == made


def test_the_shipped_bag_is_small_labelled_and_gives_the_tokens_that_the_robot_acted_on(tmp_path):
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) <= 10 * 2**20
    document = run(config(SAMPLE, tmp_path, "speculative", plan=AskPlan(limit=3)))
    (figures,) = document["cells"].values()
    assert figures["same_tokens"]["value"] == 1.0
    rows = load(tmp_path, ["sample_bag"]).rows
    assert all(row["label"] and row["executed"] for row in rows)
    assert document["faults"] == {"sample_bag": {}}
