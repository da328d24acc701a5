"""The dashboard asks only for figures that there are, and `vsd top --cloud` reads them as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from test.cloud.test_operations import SETTINGS
from test.tables import TARGET, TableModel
from vlm_spec_decode.cli import cloud_board as top_cloud
from vlm_spec_decode.cli import main as cli
from vlm_spec_decode.cloud.telemetry.metrics import COUNTER_TEXTS, GAUGE_TEXTS, Gauges, ServiceTelemetry
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import CloudUnreachable

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana.json"
WORDS = {"sum", "min", "by", "rate", "histogram_quantile", "le", "job"}


def operations() -> ServiceTelemetry:
    found = ServiceTelemetry(SETTINGS, TableModel(TARGET).card, VirtualClock())
    found.gauges = lambda: Gauges(
        sessions=3,
        peers=7,
        unroutable=1,
        is_ready=True,
        dropped={"stale": 2},
        replicas={"live": 2},
        more=dict.fromkeys(GAUGE_TEXTS, 5.0),
        counts=dict.fromkeys(COUNTER_TEXTS, 4.0),
    )
    found.metrics.refused.labels("busy").inc(6)
    for label in ("in", "out"):
        found.metrics.bytes.labels(label).inc()
        found.metrics.messages.labels(label, "Open").inc()
    found.metrics.opened.labels("hybrid").inc()
    found.metrics.first_s.observe(0.3)
    return found


def test_every_query_of_the_dashboard_names_figures_and_labels_that_exist() -> None:
    samples = [s for family in operations().metrics.registry.collect() for s in family.samples]
    labels = {sample.name: set(sample.labels) for sample in samples}
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(queries) > 20
    for query in queries:
        names = re.findall(r"([a-z_]+)\{", query)
        assert names, query
        assert set(names) <= labels.keys(), query
        for group in re.findall(r"by \(([a-z, ]+)\)", query):
            assert set(group.split(", ")) <= {key for name in names for key in labels[name]}, query
        rest = set(re.findall(r"[a-z_]{2,}", re.sub(r"\$\w+|[a-z_]+\{[^}]*\}", "", query)))
        assert rest <= WORDS | {key for name in names for key in labels[name]}, query


def test_every_figure_of_ours_is_on_the_dashboard_or_told_why_not() -> None:
    text = DASHBOARD.read_text()
    names = {family.name for family in operations().metrics.registry.collect() if "vsd_" in family.name}
    assert {name for name in names if name not in text} == {"vsd_build"}, "a label"


def test_top_shows_a_cloud(capsys: pytest.CaptureFixture[str]) -> None:
    with operations().running() as url:
        assert cli.main(["top", "--cloud", url, "--once"]) == 0
        shown = capsys.readouterr().out
        assert cli.main(["top", "--cloud", url, "--once", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["robots"], found["sessions"], found["ready"]) == (7, 3, True)
    assert found["refused"] == {"busy": 6}
    assert found["replicas"] == {"live": 2}
    assert found["mean_batch"] == 1
    assert found["first_token_p99_s"] == 0.5
    assert "busy 6" in shown
    assert cli.main(["top", "--cloud", url, "--once"]) == 3
    assert cli.main(["top", "--cloud", "ftp://x", "--once"]) == 2


def test_top_outlives_a_cloud_that_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, counted, readings = VirtualClock(), "vsd_answers_finished_total", iter([90.0, None, 4.0, 10.0])

    def read(url: str, _clock: VirtualClock) -> top_cloud.Reading:
        value = next(readings)
        if value is None:
            raise CloudUnreachable(url)
        return top_cloud.Reading(clock.now(), {(counted, ()): value})

    monkeypatch.setattr(top_cloud, "read", read)
    assert top_cloud.show("http://x", clock, 2.0, quiet=True, once=False)["answers_per_s"] is None
    readings = iter([90.0, None, 4.0, 10.0])
    assert top_cloud.show("http://x", clock, 3.0, quiet=True, once=False)["answers_per_s"] == 6.0
