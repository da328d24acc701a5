import io
import time
from dataclasses import dataclass, field

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from PIL import Image as PilImage
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String

from test.mission.scripted import EchoExecutor, ScriptedEngine
from test.ros.reports import as_json, kind_of
from vlm_spec_decode.actions.plan import PlanStatus
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import CloudRefused, CloudUnreachable, ConfigError
from vlm_spec_decode.ros import diagnostics, typed
from vlm_spec_decode.ros.convert import to_compressed
from vlm_spec_decode.ros.nodes.vlm import VlmNode
from vlm_spec_decode_msgs import msg

pytestmark = pytest.mark.ros

TOPICS = ("vlm/status", "vlm/answer", "vlm/answer/typed", "vlm/answer/partial", "vlm/trace", "vlm/plan")


@dataclass
class Source:
    """Connects to the scripted engine, or refuses for as long as it holds an error."""

    engine: ScriptedEngine
    error: Exception | None = None
    closed: bool = False
    failures: list = field(default_factory=list)
    alone: ScriptedEngine | None = None

    def connect(self):
        if self.error:
            raise self.error
        return self.engine

    def draft(self):
        return self.alone

    def facts(self):
        return '{"settings": {}}'

    def close(self):
        self.closed = True


@dataclass
class Ear:
    """Another node: hears all topics, plays camera and executor, and gives instructions."""

    node: object
    executor: EchoExecutor
    image: object
    heard: dict = field(default_factory=lambda: {topic: [] for topic in TOPICS})

    def __post_init__(self):
        for topic in TOPICS:
            self.node.create_subscription(kind_of(topic), topic, self.heard[topic].append, 50)
        self.node.create_subscription(msg.Plan, "vlm/plan", self.on_plan, 50)
        self.statuses = self.node.create_publisher(msg.PlanStatus, "vlm/plan/status", 10)
        self.voice = self.node.create_publisher(String, "vlm/instruction", 10)
        self.images = self.node.create_publisher(CompressedImage, "camera/image_raw/compressed", 5)
        self.node.create_timer(0.05, self.show)

    def show(self):
        now_s = self.node.get_clock().now().nanoseconds / 1e9
        if self.image:
            self.images.publish(to_compressed(self.image, now_s, "front_camera_optical"))

    def on_plan(self, message):
        if self.executor:
            status = self.executor.take(typed.plan_from_message(message))
            self.statuses.publish(typed.plan_status_to_message(status))

    def say(self, text):
        self.voice.publish(String(data=text))

    def states(self):
        return [status["state"] for status in self.json("vlm/status")]

    def json(self, topic):
        return [as_json(message) for message in self.heard[topic]]

    def plans(self):
        return [typed.plan_from_message(message) for message in self.heard["vlm/plan"]]


@pytest.fixture
def stage(graph, image, eventually):
    def start(script, executor=None, error=None, image=image, **parameters):
        ear = Ear(graph.node("ear"), executor or EchoExecutor(), image)
        graph.start(ear.node)
        node = graph.node("vlm_node", **{"status_timeout_s": 10.0, "frame_timeout_s": 20.0} | parameters)
        source = Source(ScriptedEngine(script), error)
        part = graph.start(node, VlmNode(node, source, WallClock(), source.failures.append))
        assert eventually(
            lambda: ear.voice.get_subscription_count() and ear.statuses.get_subscription_count()
        )
        for topic in TOPICS:
            assert eventually(
                lambda topic=topic: ear.node.count_subscribers(topic) and ear.node.count_publishers(topic)
            )
        return ear, part, source

    return start


def test_an_instruction_becomes_answers_plans_and_figures(stage, eventually):
    ear, _, source = stage([["Ball left. turn(20)"], ["Ball ahead. ", "done()"]])
    ear.say("walk to the red ball")
    assert eventually(lambda: "done" in ear.states())
    assert eventually(lambda: len(ear.heard["vlm/answer"]) == len(ear.heard["vlm/trace"]) == 2)
    answers = ear.json("vlm/answer")
    assert [a["actions"] for a in answers] == [["turn(20)"], ["done()"]]
    assert answers[1]["history"] == ["turn(20)"]
    assert answers[0]["stamp_s"] == source.engine.seen[0].stamp_s
    assert [t["total_s"] for t in ear.json("vlm/trace")] == [0.3, 0.3]
    assert eventually(lambda: ear.heard["vlm/answer/partial"][-1].data == "Ball ahead. done()")
    assert eventually(lambda: [m.final for m in ear.heard["vlm/answer/typed"]].count(True) == 2)
    said = [m for m in ear.heard["vlm/answer/typed"] if m.final]
    assert [as_json(message) for message in said] == answers, "the JSON says the same"
    parts = [m for m in ear.heard["vlm/answer/typed"] if not m.final]
    assert {(m.mission, m.answer) for m in parts} == {(m.mission, m.answer) for m in said}
    assert "Ball ahead. " in {m.text for m in parts}, "as it grows"

    def last_plan():
        plan = ear.plans()[-1]
        return plan.actions, plan.final

    assert eventually(lambda: last_plan() == ((), True))


def test_the_plan_is_the_heartbeat_while_an_answer_is_under_way(stage, eventually):
    ear, part, source = stage([["forward(0.5) ", "…"]])
    ear.say("go")
    assert eventually(lambda: any(plan.actions for plan in ear.plans()))

    def beats_at_10_hz():
        before = len(ear.heard["vlm/plan"])
        time.sleep(1.0)
        return len(ear.heard["vlm/plan"]) - before >= 10

    assert eventually(beats_at_10_hz)
    part.close()
    assert source.closed
    assert eventually(lambda: not ear.plans()[-1].actions)
    silent_from = len(ear.heard["vlm/plan"])
    time.sleep(0.4)
    assert len(ear.heard["vlm/plan"]) == silent_from


def test_a_new_instruction_supersedes_the_old_one_at_once(stage, eventually):
    ear, _, source = stage([["forward(0.5) ", "…"], ["done()"]])
    ear.say("go to the chair")
    assert eventually(lambda: any(plan.actions for plan in ear.plans()))
    old = ear.plans()[-1].mission
    ear.say("come back")
    assert eventually(lambda: "done" in ear.states())
    plans = ear.plans()
    first_new = next(i for i, plan in enumerate(plans) if plan.mission != old)
    assert (plans[first_new - 1].mission, plans[first_new - 1].actions) == (old, ())
    assert all(plan.mission != old for plan in plans[first_new:])
    assert [o.instruction for o in source.engine.seen] == ["go to the chair", "come back"]


def test_a_cancel_at_the_executor_ends_the_mission_in_the_middle_of_an_answer(stage, eventually):
    verdict = PlanStatus(state="stopped", reason="cancel", detail="asked for")
    ear, _, _ = stage([["forward(0.5) ", "…"]], EchoExecutor(verdict))
    ear.say("go")
    assert eventually(lambda: "cancelled" in ear.states())


@pytest.mark.parametrize(
    "error", [CloudUnreachable("nobody answers at tcp://127.0.0.1:9"), CloudRefused("model", "other model")]
)
def test_a_cloud_that_is_not_there_is_named_and_nothing_moves(stage, eventually, error):
    ear, _, source = stage([["done()"]], error=error)
    assert eventually(lambda: "unavailable" in ear.states())
    ear.say("go")
    assert eventually(lambda: "failed" in ear.states())
    failed = next(s for s in ear.json("vlm/status") if s["state"] == "failed")
    assert (failed["reason"], failed["detail"]) == (type(error).__name__, str(error))
    assert not any(plan.actions for plan in ear.plans())
    source.error = None
    ear.say("go")
    assert eventually(lambda: "done" in ear.states())


def test_settings_that_do_not_hold_end_the_node_by_name(stage, eventually):
    error = ConfigError("unknown strategy 'fast'")
    ear, _, source = stage([["done()"]], error=error)
    assert eventually(lambda: "unavailable" in ear.states())
    assert source.failures[0] is error


@pytest.mark.parametrize("text", ["", "x" * 10_000])
def test_an_instruction_that_is_none_is_named_and_ends_nothing(stage, eventually, text):
    ear, _, _ = stage([["forward(0.5) ", "…"]])
    ear.say("go")
    assert eventually(lambda: "answering" in ear.states())
    ear.say(text)
    assert eventually(lambda: any(s["reason"] == "InstructionError" for s in ear.json("vlm/status")))
    before = len(ear.heard["vlm/plan"])
    assert eventually(lambda: len(ear.heard["vlm/plan"]) > before + 5)


def test_the_instruction_parameter_starts_by_itself_when_all_is_there(stage, eventually):
    ear, _, source = stage([["done()"]], instruction="sit")
    ear.statuses.publish(typed.plan_status_to_message(PlanStatus()))
    assert eventually(lambda: "done" in ear.states())
    assert source.engine.seen[0].instruction == "sit"


def test_corrupt_frames_and_statuses_are_dropped_and_counted(stage, eventually, graph):
    ear, _, _ = stage([["done()"]], image=None, frame_timeout_s=2.0)
    reports = graph.listen(ear.node, DiagnosticArray, "/diagnostics")
    ear.images.publish(CompressedImage(format="jpeg", data=b"\xff\xd8 no more"))
    ear.statuses.publish(msg.PlanStatus(state=99))
    ear.say("go")
    assert eventually(lambda: "failed" in ear.states())
    assert "camera gone" in ear.json("vlm/status")[-1]["detail"]

    def warned():
        lines = [status for report in reports for status in report.status]
        return any(s.level == diagnostics.WARN and s.message == "bad frames" for s in lines)

    assert eventually(warned)


def test_closing_does_not_wait_for_an_engine_that_hangs(stage, eventually):
    ear, part, source = stage([["forward(0.5) ", "…"]])
    source.engine.cancel = lambda: None
    ear.say("go")
    assert eventually(lambda: "answering" in ear.states())
    started = time.monotonic()
    part.close()
    assert time.monotonic() - started < 10.0, "twice CLOSE_S and what a busy machine adds"
    source.engine.cancelled.set()


class Unstamped(Ear):
    """A camera that stamps nothing, takes PNG pictures, and sometimes sends what is none."""

    def show(self):
        buffer = io.BytesIO()
        PilImage.new("RGB", (64, 48), (20, 160, 40)).save(buffer, "PNG")
        self.images.publish(CompressedImage(format="", data=buffer.getvalue()))
        self.images.publish(CompressedImage(format="jpeg", data=b"no picture"))


def test_a_camera_without_stamps_is_seen_and_bad_frames_say_why(graph, image, eventually):
    ear = Unstamped(graph.node("ear"), EchoExecutor(), image)
    heard = graph.listen(ear.node, DiagnosticArray, "/diagnostics")
    graph.start(ear.node)
    node = graph.node("vlm_node", status_timeout_s=10.0, frame_timeout_s=20.0)
    source = Source(ScriptedEngine([["Ball left. turn(20)"], ["Ball ahead. ", "done()"]]))
    graph.start(node, VlmNode(node, source, WallClock(), source.failures.append))
    assert eventually(lambda: ear.voice.get_subscription_count() and "ready" in ear.states())
    ear.say("walk to the red ball")
    assert eventually(lambda: "done" in ear.states())

    def why():
        lines = [line for message in heard for line in message.status if line.name.endswith("frames")]
        return any("decoded" in pair.value for line in lines for pair in line.values)

    assert eventually(why)
