import io
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from nav_msgs.msg import Odometry, Path
from PIL import Image as PilImage
from sensor_msgs.msg import CompressedImage, LaserScan
from std_msgs.msg import Float64, String
from visualization_msgs.msg import Marker, MarkerArray

from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.actions.types import Forward, Strafe, Turn
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import ImageError
from vlm_spec_decode.core.trace import LinkUsage, RoundTrace
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.mission.reports import DecodeReport
from vlm_spec_decode.mission.state import MissionStatus
from vlm_spec_decode.robot.registry import robot_kind
from vlm_spec_decode.ros import typed
from vlm_spec_decode.ros.convert import from_compressed, to_compressed, to_ranges
from vlm_spec_decode.ros.middleware import COMMAND, LATCHED
from vlm_spec_decode.ros.nodes.monitor import FIGURES, MonitorNode
from vlm_spec_decode.ros.visualization import (
    COLOURS,
    HULL,
    AnswerPiece,
    BodyView,
    Caption,
    body_markers,
    draw,
    pieces_of,
    plan_markers,
    waypoints,
    wiped,
)
from vlm_spec_decode_msgs import msg

pytestmark = pytest.mark.ros

ROUND = RoundTrace(
    start=0, drafted=8, accepted=6, committed=9, draft_s=0.1, wait_s=0.2, verify_s=0.05, at_s=0.5
)
TRACE = DecodeReport(
    mission="m",
    number=1,
    strategy="speculative",
    rule="coupled",
    tokens=9,
    rounds=(ROUND,),
    drafted=8,
    accepted=6,
    acceptance_rate=0.75,
    target_passes=1,
    early_verdicts=0,
    time_to_first_token_s=0.1,
    time_to_first_action_s=0.2,
    total_s=0.5,
    usage=LinkUsage(100, 200),
)


def test_the_overlay_holds_the_words_and_keeps_the_frames_size(image):
    plain = draw(image, Caption())
    said = draw(
        image,
        Caption((AnswerPiece("Ball ahead. ", "accepted"), AnswerPiece("done()", "corrected")), "acting"),
    )
    assert (said.width, said.height) == (image.width, image.height)
    assert said.jpeg != plain.jpeg
    with pytest.raises(ImageError):
        draw(Image(b"no jpeg", 1, 1), Caption())


def wide_frame():
    buffer = io.BytesIO()
    PilImage.new("RGB", (1280, 720), (200, 200, 200)).save(buffer, "JPEG")
    return Image(buffer.getvalue(), 1280, 720)


def test_a_wide_frame_is_shown_small_with_its_words_in_their_colours():
    wide = wide_frame()
    said = draw(wide, Caption((AnswerPiece("Ball\nahead. " * 20, "accepted"),), "acting", source="estop"))
    with PilImage.open(io.BytesIO(said.jpeg)) as opened:
        assert opened.size == (said.width, said.height) == (640, 360)
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    above, middle, below = pixels[:30], pixels[150:200], pixels[-30:]
    assert abs(middle - 200).max() < 12
    assert (above[..., 1] - above[..., 0]).max() > 80, "green: accepted"
    assert (below[..., 0] - below[..., 1]).max() > 80, "red: the e-stop commands"
    assert np.median(above) < 120 > np.median(below)
    assert draw(wide, Caption()).jpeg != said.jpeg, "another caption, drawn anew"


def test_the_overlay_draws_letters_that_its_font_has_and_cuts_what_is_too_long():
    def shown(state, source="none"):
        return draw(wide_frame(), Caption(state=state, source=source)).jpeg

    assert shown("größer, à côté") == shown("grosser, a cote") != shown("gr\u25a1\u25a1er")
    assert shown("word " * 100) == shown("word " * 200), "nothing runs under the source of commands"
    assert shown("word " * 100, "none") != shown("word " * 100, "language")


def test_pieces_are_the_answer_and_tell_drafts_from_corrections():
    rounds = [
        {"accepted": 3, "committed": 4},
        {"accepted": 0, "committed": 1},
        {"accepted": 5, "committed": 5},
    ]
    text = "Ball ahead, two metres. forward(1.6) done()"
    pieces = pieces_of(text, rounds)
    assert "".join(piece.text for piece in pieces) == text
    assert {piece.kind for piece in pieces} == {"accepted", "corrected"} <= set(COLOURS)
    assert pieces[-1].kind == "accepted"
    assert pieces_of(text, []) == (AnswerPiece(text),)


def test_a_plan_leads_where_its_actions_lead():
    steps = waypoints((1.0, 0.0, 0.0), (Forward(1.0), Turn(90.0), Forward(0.5), Strafe(0.5)))
    assert steps[-1][0] == pytest.approx((1.5, 0.5, math.pi / 2))
    drawn = plan_markers(Plan("m", 1, 0.0, 0, (Forward(1.0),), verified=False), (0.0, 0.0, 0.0), "odom")
    kinds = [marker.type for marker in drawn.markers if marker.action == Marker.ADD]
    assert kinds == [Marker.LINE_STRIP, Marker.TEXT_VIEW_FACING, Marker.CUBE]
    assert all(marker.header.frame_id == "odom" for marker in drawn.markers)
    assert drawn.markers[0].color.r == pytest.approx(1.0), "orange: not verified"
    assert drawn.markers[1].text == "draft: forward(1)", "and not by colour alone"


def arrays():
    """Return every array that a monitor publishes, by name: plans of several lengths, and the body."""
    pose, actions = (1.0, 2.0, 0.5), (Forward(1.0), Turn(90.0), Strafe(0.5))
    for count in range(4):
        plan = Plan("m", 1, 0.0, 0, actions[:count])
        for is_over in (False, True):
            yield f"plan of {count}", plan_markers(plan, pose, "odom", is_over=is_over, labels=3)
    for free_m in (0.0, 0.4, 2.9, math.inf, math.nan):
        for source in ("none", "language", "teleop", "estop"):
            view = BodyView(stop_m=0.5, ranges_m=(free_m, 1.0, math.inf, 0.2), status="acting", source=source)
            yield f"body at {free_m}, {source}", body_markers(view, "base_link")
    yield "wiped", wiped()


@pytest.mark.parametrize(("name", "array"), [*arrays()])
def test_rviz_draws_every_marker_at_once_and_finds_none_twice(name, array):
    keys = [(marker.ns, marker.id) for marker in array.markers]
    assert len(set(keys)) == len(keys), "a duplicate to RViz"
    wipes = [marker for marker in array.markers if marker.action == Marker.DELETEALL]
    assert not wipes or len(array.markers) == 1
    for marker in (each for each in array.markers if each.action == Marker.ADD):
        stamp = marker.header.stamp
        assert (stamp.sec, stamp.nanosec, marker.frame_locked) == (0, 0, True)
        place, turn = marker.pose.position, marker.pose.orientation
        numbers = [place.x, place.y, place.z, marker.scale.x, marker.scale.y, marker.scale.z]
        assert all(map(math.isfinite, numbers))
        assert math.hypot(turn.x, turn.y, turn.z, turn.w) == pytest.approx(1.0)
        if marker.type == Marker.TEXT_VIEW_FACING:
            assert marker.text
            assert 0.3 * marker.scale.z < marker.scale.x < marker.scale.z, "a space no wider than a letter"
        assert marker.type != Marker.CUBE or min(numbers[3:]) > 0


def test_one_array_replaces_whatever_plan_was_drawn_before():
    long, short = (Plan("m", 1, 0.0, 0, (Forward(1.0),) * count) for count in (5, 2))
    shown = {}
    for plan, labels in ((long, 0), (short, 5), (Plan("m", 2, 0.0, 0), 5)):
        for marker in plan_markers(plan, (0.0, 0.0, 0.0), "odom", labels=labels).markers:
            key = (marker.ns, marker.id)
            shown.pop(key, None)
            if marker.action == Marker.ADD:
                shown[key] = marker
        assert sum(ns == "actions" for ns, _ in shown) == len(plan.actions)
        assert (("end", 0) in shown) == bool(plan.actions)


def test_labels_of_actions_in_one_place_stand_above_each_other():
    plan = Plan("m", 1, 0.0, 0, (Turn(90.0), Turn(-30.0), Turn(10.0)))
    labels = [m for m in plan_markers(plan, (0.0, 0.0, 0.0), "odom").markers if m.ns == "actions"]
    line_m = 2 * labels[0].scale.z  # what RViz takes for a line
    assert all(b.pose.position.z - a.pose.position.z >= line_m - 1e-9 for a, b in pairwise(labels))


@pytest.mark.parametrize("source", ["language", "estop"])
@pytest.mark.parametrize("status", ["", "acting", "acting | walk to the door and then to the red chair"])
def test_the_status_begins_above_the_highest_label_however_long_it_is(status, source):
    plan = Plan("m", 1, 0.0, 0, (Turn(90.0), Turn(-30.0), Turn(10.0)))
    markers = plan_markers(plan, (0.0, 0.0, 0.0), "odom").markers
    top_m = max(m.pose.position.z + m.scale.z for m in markers if m.ns == "actions")
    view = BodyView(stop_m=0.5, status=status, source=source)
    words = next(m for m in body_markers(view, "base_link").markers if m.ns == "status")
    middle_m = robot_kind("go2").spec.legs.standing_height_m + words.pose.position.z
    assert top_m < middle_m - words.scale.z * len(words.text.split("\n")) < top_m + 0.3


def test_obstacles_the_status_and_the_e_stop_are_seen():
    def parts(**fields):
        array = body_markers(BodyView(stop_m=0.5, **fields), "base_link")
        return {(m.ns, m.id): m for m in array.markers if m.action == Marker.ADD}

    near = parts(ranges_m=(0.3, math.inf, 2.0, 0.7), status="acting | turn(20)")
    assert near["distances", 0].text == "0.30 m"
    assert near["obstacles", 0].pose.position.x == pytest.approx(0.35 + 0.3)
    assert near["obstacles", 2].pose.position.x == pytest.approx(-0.35 - 2.0)
    assert near["obstacles", 3].pose.position.y == pytest.approx(-0.16 - 0.7)
    assert ("obstacles", 1) not in near, "nothing there"
    colours = [(near["obstacles", side].color.r, near["obstacles", side].color.g) for side in (0, 2, 3)]
    assert len(set(colours)) == 3, "within the stop zone, far, near"
    assert near["status", 0].text == "acting | turn(20)"
    stopped = parts(status="acting", source="estop")
    assert stopped["status", 0].text == "E-STOP\nacting"
    assert stopped["status", 0].scale.z > near["status", 0].scale.z
    whole = parts(status="acting | walk to the red chair")["status", 0]
    assert whole.text == "acting | walk to the red\nchair"
    for source, begin in (("none", "acting | grosser"), ("estop", "E-STOP\nacting | grosser")):
        long = parts(status="acting | " + "größer als der rote Stuhl, " * 9, source=source)["status", 0]
        lines = long.text.split("\n")
        assert long.text.startswith(begin)
        assert lines[-1].endswith(" ..."), "and the rest is in the overlay"
        # What RViz's view of the robot holds; a line is twice as high as a capital, a letter as wide as one.
        assert 2 * long.scale.z * len(lines) < 1.0
        assert long.scale.z * max(map(len, lines)) < 4.0
    assert stopped["hull", 0].color.r > near["hull", 0].color.r


def test_what_is_said_becomes_pictures_and_numbers(graph, image, eventually, sensor_qos):
    other = graph.node("other")
    overlays = graph.listen(other, CompressedImage, "vlm/overlay/compressed", sensor_qos)
    drawn = graph.listen(other, MarkerArray, "vlm/markers", LATCHED)
    bodies = graph.listen(other, MarkerArray, "vlm/markers/body")
    paths = graph.listen(other, Path, "vlm/path")
    figures = {name: graph.listen(other, Float64, f"vlm/figures/{name}") for name in FIGURES}
    publishers = {
        topic: other.create_publisher(kind, topic, 10)
        for kind, topic in (
            (CompressedImage, "camera/image_raw/compressed"),
            (Odometry, "odom"),
            (msg.Plan, "vlm/plan"),
            (msg.DecodeTrace, "vlm/trace"),
            (String, "vlm/answer/partial"),
            (LaserScan, "vlm/ranges"),
        )
    }
    graph.start(other)
    node = graph.node("monitor_node")
    graph.start(node, MonitorNode(node, WallClock()))
    assert eventually(lambda: all(p.get_subscription_count() for p in publishers.values()))
    odometry = Odometry()
    odometry.pose.pose.position.x, odometry.twist.twist.linear.x = 1.0, 0.3
    plan = Plan("m", 1, 0.0, 0, (Forward(1.0),))

    def arrived():
        now_s = other.get_clock().now().nanoseconds / 1e9
        publishers["camera/image_raw/compressed"].publish(to_compressed(image, now_s, "eye"))
        publishers["odom"].publish(odometry)
        publishers["vlm/answer/partial"].publish(String(data="Ball ahead."))
        publishers["vlm/trace"].publish(typed.trace_to_message(TRACE))
        publishers["vlm/plan"].publish(typed.plan_to_message(plan))
        publishers["vlm/ranges"].publish(to_ranges((0.3, math.inf, math.inf, 2.0), HULL.half_m, now_s, "b"))
        return overlays and paths and any(plans()) and any(walls()) and all(figures.values())

    def plans():
        return [array for array in drawn if any(marker.ns == "plan" for marker in array.markers)]

    def walls():
        names = ({(m.ns, m.id) for m in array.markers if m.action == Marker.ADD} for array in bodies)
        return [found for found in names if {("obstacles", 0), ("obstacles", 3)} <= found]

    assert eventually(arrived)
    assert from_compressed(overlays[-1])[0].width == image.width
    assert overlays[-1].header.frame_id == "eye"
    assert figures["acceptance"][-1].data == 0.75
    assert figures["link_s"][-1].data == pytest.approx(0.15)
    assert figures["speed_mps"][-1].data == pytest.approx(0.3)
    assert paths[-1].poses[-1].pose.position.x == 1.0
    # Who looks later, while the body is drawn again and again, still sees the plan, whole.
    late = graph.listen(other, MarkerArray, "vlm/markers", LATCHED)
    assert eventually(lambda: late)
    kinds = [marker.type for marker in late[-1].markers]
    assert kinds == [Marker.LINE_STRIP, Marker.TEXT_VIEW_FACING, Marker.CUBE]
    assert all(marker.lifetime.sec == 0 for marker in late[-1].markers), "it stays"
    assert all(0 < marker.lifetime.sec < 10 for marker in bodies[-1].markers), "it goes with the node"


def test_what_the_draft_alone_says_has_its_own_colour(graph, eventually):
    other, node = graph.node("other"), graph.node("monitor_node")
    statuses = other.create_publisher(msg.MissionStatus, "vlm/status", LATCHED)
    partials = other.create_publisher(String, "vlm/answer/partial", 10)
    part = graph.start(node, MonitorNode(node, WallClock()))
    status = MissionStatus(state="answering", reason="unverified", instruction="go")
    statuses.publish(typed.mission_status_to_message(status))
    assert eventually(lambda: "unverified" in part.caption.state)

    def told():
        partials.publish(String(data="turn(20)"))
        return part.caption.pieces

    assert eventually(told)
    assert part.caption.pieces == (AnswerPiece("turn(20)", "drafted"),)
    statuses.publish(typed.mission_status_to_message(replace(status, reason="")))
    assert eventually(lambda: told() and told()[0].kind == "committed")


def test_a_start_on_the_draft_is_orange_until_it_is_committed_and_keeps_the_words(graph, eventually):
    other, node = graph.node("other"), graph.node("monitor_node")
    statuses = other.create_publisher(msg.MissionStatus, "vlm/status", LATCHED)
    partials = other.create_publisher(String, "vlm/answer/partial", 10)
    plans = other.create_publisher(msg.Plan, "vlm/plan", COMMAND)
    drawn = graph.listen(other, MarkerArray, "vlm/markers", LATCHED)
    graph.start(other)
    part = graph.start(node, MonitorNode(node, WallClock()))
    status = MissionStatus(state="answering", instruction="go")
    statuses.publish(typed.mission_status_to_message(status))

    def told():
        partials.publish(String(data="ball left"))
        return part.caption.pieces

    assert eventually(told)
    statuses.publish(typed.mission_status_to_message(replace(status, reason="start_begun")))
    assert eventually(lambda: "start_begun" in part.caption.state)
    assert part.caption.pieces == (AnswerPiece("ball left", "committed"),)

    def colours(plan):
        plans.publish(typed.plan_to_message(plan))
        return [array.markers[0].color.r for array in drawn if len(array.markers) > 1]

    start = Plan("m", 1, 0.0, 1, (Turn(20.0),), verified=False, draft_start=True)
    assert eventually(lambda: colours(start))
    assert colours(start)[-1] == pytest.approx(1.0), "orange: not verified"
    committed = Plan("m", 1, 0.0, 2, (Turn(20.0),))
    assert eventually(lambda: colours(committed)[-1] < 0.5)
    statuses.publish(typed.mission_status_to_message(replace(status, state="done")))
    assert eventually(lambda: len({*array_colour(drawn[-1])}) == 1), "grey: over"


def array_colour(array):
    colour = array.markers[0].color
    return [round(part, 1) for part in (colour.r, colour.g, colour.b)]
