"""A demo that keeps to a hardware profile, beside the same mission without drafts; with real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.dds, pytest.mark.ros, pytest.mark.net]

PROFILE = """
draft_ms: 20
step_ms: 250
verify_ms: 250
prefill_ms: 250
cloud_draft_ms: 60
"""
STEP_S = 0.25


@pytest.mark.timeout(400)
def test_the_demo_ends_with_the_times_of_both_missions(tmp_path: Path) -> None:
    profile, out = tmp_path / "slow.yaml", tmp_path / "out"
    profile.write_text(PROFILE)
    options = ["--profile", str(profile), "--link", "lte", "--compare", "autoregressive", "--out", str(out)]
    command = [sys.executable, "-m", "vlm_spec_decode.cli", "demo", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=380, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    found = json.loads((out / "run.json").read_text())
    runs = found["runs"]
    assert list(runs) == ["hybrid", "autoregressive"]
    assert found["artifacts"]["timeline"] == str(out / "timeline.png")
    assert f"timeline: {out / 'timeline.png'}" in done.stdout
    with Image.open(out / "timeline.png") as picture:
        assert picture.width > picture.height > 200
    for name, run in runs.items():
        assert run["status"] == "done"
        assert run["looks"] >= 1
        assert run["moved_s"] > 1.0
        assert run["moved_s"] + run["waited_s"] == pytest.approx(run["total_s"], abs=0.01)
        assert f"{name} (mission done): {run['total_s']:.1f} s" in done.stdout
        for span in run["spans"]:
            assert 0 <= span["start_s"] <= span["end_s"] <= run["total_s"] + 0.001
    # Without drafts each token takes a step of the profile.
    again = found["autoregressive"]
    assert again["answer_s"] >= again["target_passes"] * STEP_S
    assert found["same_tokens_as_autoregressive"]
    assert runs["hybrid"]["waited_s"] < runs["autoregressive"]["waited_s"]
    assert runs["autoregressive"]["max_frame_age_s"] > runs["hybrid"]["max_frame_age_s"] == 5.0
