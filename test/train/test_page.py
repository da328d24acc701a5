"""The evaluation's page shows what was measured and every failure, with what was said escaped."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.train.episodes import Episode, Task
from vlm_spec_decode.train.evaluate import write_page
from vlm_spec_decode.train.instructions import Goal


def test_the_page_has_figures_bars_and_failures(tmp_path: Path) -> None:
    task = Task(7, "go to", Goal("go to the <b>", "goto", "red chair"))
    failed = Episode(task, answers=["i see nothing . done ( )"], status="done", collisions=2)
    good = Episode(Task(8, "face", Goal("face the red chair", "face", "red chair")), success=True)
    figures = {"success": 0.5, "success_by_kind": {"go to": "0/1", "face": "1/1"}, "failed_seeds": [7]}
    page = write_page(figures, [failed, good], tmp_path).read_text()
    assert "go to the &lt;b&gt;" in page
    assert "<b>go to the <b>" not in page
    assert "1 failures of 2" in page
    assert "2 collisions" in page
    assert page.count('fill="#3572b0"') == 2
    assert ">100%<" in page
    assert ">0%<" in page


def test_a_way_is_held_against_the_straight_one() -> None:
    path = [Pose2D(0.0, 0.0, 0.0), Pose2D(0.0, 1.5, 0.0), Pose2D(2.0, 1.5, 0.0)]
    ended = Episode(Task(7, "go to", Goal("", "goto", "")), path=path, first_distance_m=3.0, distance_m=0.5)
    assert ended.way_over_straight == pytest.approx(3.5 / 2.5)
    assert ended.summary()["way_over_straight"] == 1.4
    assert replace(ended, distance_m=2.8).way_over_straight is None
    assert replace(ended, first_distance_m=math.nan).way_over_straight is None
    assert replace(ended, task=Task(8, "face", Goal("", "face", ""))).way_over_straight is None
