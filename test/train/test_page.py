"""The evaluation's page shows what was measured and every failure, with what was said escaped."""

from __future__ import annotations

from pathlib import Path

from vlm_spec_decode.train.instructions import Goal
from vlm_spec_decode.train.judging import Episode
from vlm_spec_decode.train.page import write_page
from vlm_spec_decode.train.tasks import Task


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
