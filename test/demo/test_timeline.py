"""What a mission's time went into, from its messages, and the picture of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from test.demo.test_report import told
from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.profiles import LinkProfile
from vlm_spec_decode.demo.timeline import (
    ANSWERING,
    COLOURS,
    LEFT_PX,
    MOVING,
    RIGHT_PX,
    UPLOADING,
    WAITING,
    WIDTH_PX,
    Span,
    Timeline,
    TimelineRecorder,
    save_timelines,
    upload_s,
)

SLOW_LINK = LinkProfile("slow", rtt_ms=100, up_mbps=0.8)


def walk() -> TimelineRecorder:
    """Given at 10 s; two looks; the robot moves from 13 to 16 s, while the first answer ends at 14 s."""
    times = TimelineRecorder()
    times.look(1, 11.0)
    times.robot(False, 11.1)
    times.robot(True, 13.0)
    times.robot(True, 13.5)
    times.answered(1, 14.0)
    times.sent(1, 45_000)
    times.robot(False, 16.0)
    times.look(2, 16.5)
    times.answered(2, 19.0)
    return times


def test_the_robot_moves_or_waits_and_answers_overlap_with_both() -> None:
    line = walk().timeline(10.0, 20.0, SLOW_LINK)
    assert line.total_s == 10.0
    assert line.seconds(MOVING) == pytest.approx(3.0)
    assert line.seconds(WAITING) == pytest.approx(7.0)
    # 360 kbit at 0.8 Mbit/s and half a round trip; then until 14 s, and from 16.5 to 19 s.
    assert line.seconds(UPLOADING) == pytest.approx(0.5)
    assert line.seconds(ANSWERING) == pytest.approx(2.5 + 2.5)
    assert [(s.look, s.start_s, s.end_s) for s in line.spans if s.kind == MOVING] == [(1, 3.0, 6.0)]
    assert line.summary() == "10.0 s, moved 3.0 s, waited 7.0 s (70%), 2 looks"
    told = line.document()
    assert (told["moved_s"], told["waited_s"], told["waited_share"], told["looks"]) == (3.0, 7.0, 0.7, 2)
    assert {span["kind"] for span in told["spans"]} == {MOVING, WAITING, UPLOADING, ANSWERING}


def test_nothing_is_counted_beyond_the_missions_end() -> None:
    line = walk().timeline(10.0, 15.0)
    assert line.seconds(MOVING) == pytest.approx(2.0)
    assert line.seconds(WAITING) == pytest.approx(3.0)
    assert max(span.end_s for span in line.spans) == 5.0


def test_an_answer_that_is_broken_off_ends_with_the_next_look() -> None:
    times = TimelineRecorder()
    times.look(1, 1.0)
    times.look(1, 4.0)
    times.answered(1, 6.0)
    spans = [span for span in times.timeline(0.0, 7.0).spans if span.kind == ANSWERING]
    assert [(span.start_s, span.end_s) for span in spans] == [(1.0, 4.0), (4.0, 6.0)]


def test_an_upload_is_bytes_over_the_links_rate_and_half_a_round_trip() -> None:
    assert upload_s(10_000, SLOW_LINK) == pytest.approx(0.1 + 0.05)
    assert upload_s(10_000, None) == 0.0


def test_a_mission_without_a_look_is_all_waiting() -> None:
    line = TimelineRecorder().timeline(0.0, 2.0)
    assert (line.seconds(WAITING), line.looks) == (2.0, 0)
    assert TimelineRecorder().timeline(0.0, 0.0).document()["waited_share"] == 0.0


def test_the_log_of_a_mission_keeps_its_times() -> None:
    log = told()
    line = log.times.timeline(log.given_s, log.ended_s or 0.0)
    (answer,) = [span for span in line.spans if span.kind == ANSWERING]
    assert (answer.look, answer.start_s, answer.end_s) == pytest.approx((1, 0.2, 0.6))
    assert line.seconds(WAITING) == pytest.approx(2.0), "its robot never moved"


def test_the_picture_shows_all_runs_on_one_scale(tmp_path: Path) -> None:
    moved = Timeline((Span(MOVING, 1, 0.0, 10.0), Span(ANSWERING, 1, 0.0, 10.0)), 10.0)
    stood = Timeline((Span(WAITING, 1, 0.0, 20.0), Span(UPLOADING, 1, 0.0, 20.0)), 20.0)
    file = tmp_path / "timeline.png"
    save_timelines("both", {"new": moved, "old": stood}, file)
    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    inner = WIDTH_PX - LEFT_PX - RIGHT_PX
    first, last = (LEFT_PX + round(inner * share) for share in (0.3, 0.9))

    def shown(x: int) -> set[str]:
        column = {picture.getpixel((x, y)) for y in range(picture.height - 60)}
        return {kind for kind, colour in COLOURS.items() if bytes.fromhex(colour[1:]) in map(bytes, column)}

    assert shown(first) == {MOVING, ANSWERING, WAITING, UPLOADING}
    assert shown(last) == {WAITING, UPLOADING}, "the shorter run ends at half of the width"


def test_without_drafts_a_slow_profile_needs_older_frames() -> None:
    from vlm_spec_decode.demo.main import needed_frame_age_s

    assert needed_frame_age_s("go2_a100", "autoregressive") == pytest.approx(97 * 0.62, abs=0.1)
    assert needed_frame_age_s("go2_a100", "hybrid") is None
    assert needed_frame_age_s("", "autoregressive") is None
    assert SafetyLimits().max_frame_age_s < 97 * 0.62


@pytest.mark.parametrize("compare", [("hybrid",), ("speculative", "speculative"), ("none",)])
def test_what_cannot_be_compared_is_refused_before_anything_starts(
    compare: tuple[str, ...], tmp_path: Path
) -> None:
    from vlm_spec_decode.demo.main import run
    from vlm_spec_decode.demo.settings import DemoConfig

    with pytest.raises(ConfigError):
        run(DemoConfig(strategy="hybrid", compare=compare, out=tmp_path / "out"), print)
    with pytest.raises(ConfigError, match="no profile 'warp'"):
        run(DemoConfig(profile="warp", out=tmp_path / "out"), print)
    assert not (tmp_path / "out").exists()
