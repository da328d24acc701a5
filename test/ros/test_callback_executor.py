"""The nodes' executor runs what rclpy's runs, by the same rules, and wakes up far less."""

import threading
import time

import pytest
import rclpy
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from test.ros import ROS_DOMAIN
from test.ros.conftest import wait_for
from vlm_spec_decode.ros import callback_executor
from vlm_spec_decode.ros.callback_executor import CallbackExecutor, _take_timer
from vlm_spec_decode.ros.convert import STEADY
from vlm_spec_decode.ros.subscriptions import PausedTimer

pytestmark = pytest.mark.ros

COMMAND = QoSProfile(depth=50)


class Spun:
    """A node, spun on a thread; what its callbacks raise is kept."""

    def __init__(self):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=ROS_DOMAIN)
        self.executor = CallbackExecutor(4, context=self.context)
        self.node = rclpy.create_node("spun", context=self.context, namespace="/callback_executor")
        self.executor.add_node(self.node)
        self.raised, self.waits = [], 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._spin, daemon=True)
        self.thread.start()

    def _spin(self):
        while not self.ended.is_set():
            self.waits += 1
            try:
                self.executor.spin_once(timeout_sec=0.2)
            except RuntimeError as error:
                self.raised.append(str(error))

    def close(self):
        self.ended.set()
        self.executor.wake()
        self.thread.join(5)
        self.executor.release()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


class Overlap:
    """A callback that takes a while, and how many of it ran at the same time."""

    def __init__(self):
        self.lock, self.running, self.most, self.calls = threading.Lock(), 0, 0, []

    def __call__(self, what=None):
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(0.02)
        with self.lock:
            self.running -= 1
            self.calls.append(what)


@pytest.fixture
def spun():
    made = Spun()
    yield made
    made.close()


def topic(spun, name, take, group, count=1, qos=COMMAND):
    """Subscribe `count` times, and return the publisher once all are connected."""
    for _ in range(count):
        spun.node.create_subscription(String, name, take, qos, callback_group=group)
    publisher = spun.node.create_publisher(String, name, qos)
    assert wait_for(lambda: publisher.get_subscription_count() == count)
    return publisher


def test_messages_come_in_order_and_a_group_runs_one_callback_at_a_time(spun):
    seen = Overlap()
    group = MutuallyExclusiveCallbackGroup()
    publisher = topic(spun, "order", lambda message: seen(message.data), group)
    spun.node.create_timer(0.01, seen, group, clock=STEADY)
    for number in range(20):
        publisher.publish(String(data=str(number)))
    assert wait_for(lambda: len([each for each in seen.calls if each]) == 20)
    assert [each for each in seen.calls if each] == [str(number) for number in range(20)]
    # The timer is always due, and no message waits for ever behind it.
    assert None in seen.calls
    assert seen.most == 1


def test_a_reentrant_group_runs_several_at_a_time_of_one_subscription_too(spun):
    seen = Overlap()
    publisher = topic(spun, "many", seen, ReentrantCallbackGroup())
    for number in range(12):
        publisher.publish(String(data=str(number)))
    assert wait_for(lambda: len(seen.calls) == 12)
    assert 2 <= seen.most <= 4


def test_a_service_answers_while_every_timer_and_subscription_of_a_group_is_stuck(spun):
    stuck, free = threading.Event(), MutuallyExclusiveCallbackGroup()
    group = MutuallyExclusiveCallbackGroup()
    spun.node.create_timer(0.01, lambda: stuck.wait(20), group, clock=STEADY)

    async def answer(_request, response):
        response.message = "here"
        return response

    spun.node.create_service(Trigger, "ask", answer, callback_group=free)
    client = spun.node.create_client(Trigger, "ask", callback_group=ReentrantCallbackGroup())
    assert client.wait_for_service(20)
    heard = []
    client.call_async(Trigger.Request()).add_done_callback(lambda done: heard.append(done.result().message))
    assert wait_for(lambda: heard == ["here"])
    stuck.set()


def test_a_guard_that_is_triggered_while_its_group_is_busy_is_not_lost(spun):
    group, busy, free = MutuallyExclusiveCallbackGroup(), threading.Event(), threading.Event()
    calls = []

    def work():
        busy.set()
        free.wait(20)
        timer.cancel()

    timer = spun.node.create_timer(0.01, work, group, clock=STEADY)
    guard = spun.node.create_guard_condition(lambda: calls.append(time.monotonic()), group)
    assert busy.wait(20)
    guard.trigger()
    time.sleep(0.3)
    assert not calls
    free.set()
    assert wait_for(lambda: calls)
    time.sleep(0.1)
    assert len(calls) == 1


def test_what_a_callback_raises_is_raised_by_the_spinning_thread(spun):
    def fail(_):
        raise RuntimeError("of a message")

    def refuse(_request, _response):
        raise RuntimeError("of a request")

    publisher = topic(spun, "fails", fail, MutuallyExclusiveCallbackGroup())
    spun.node.create_service(SetBool, "refuse", refuse, callback_group=MutuallyExclusiveCallbackGroup())
    client = spun.node.create_client(SetBool, "refuse", callback_group=ReentrantCallbackGroup())
    assert client.wait_for_service(20)
    publisher.publish(String())
    client.call_async(SetBool.Request())
    assert wait_for(lambda: sorted(spun.raised) == ["of a message", "of a request"])
    publisher.publish(String())
    assert wait_for(lambda: spun.raised.count("of a message") == 2)


def test_entities_that_come_and_go_while_it_spins_are_served_and_freed(spun):
    group = MutuallyExclusiveCallbackGroup()
    for round_number in range(5):
        heard = []
        subscription = spun.node.create_subscription(
            String, f"short{round_number}", heard.append, COMMAND, callback_group=group
        )
        publisher = spun.node.create_publisher(String, f"short{round_number}", COMMAND)
        assert wait_for(lambda: publisher.get_subscription_count() == 1)  # noqa: B023
        publisher.publish(String(data="x"))
        assert wait_for(lambda: len(heard) == 1)  # noqa: B023
        spun.node.destroy_subscription(subscription)
        assert wait_for(lambda: publisher.get_subscription_count() == 0)  # noqa: B023
        spun.node.destroy_publisher(publisher)


def test_a_quality_of_service_that_does_not_fit_is_still_told(spun):
    told = []
    events = rclpy.event_handler.SubscriptionEventCallbacks(incompatible_qos=told.append)
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    spun.node.create_subscription(String, "qos", lambda _: None, latched, event_callbacks=events)
    spun.node.create_publisher(String, "qos", qos_profile_sensor_data)
    assert wait_for(lambda: told)


def test_it_wakes_up_twice_for_a_callback(spun):
    calls = []
    spun.node.create_timer(0.01, lambda: calls.append(1), MutuallyExclusiveCallbackGroup(), clock=STEADY)
    assert wait_for(lambda: calls)
    waits, before = spun.waits, len(calls)
    time.sleep(1.0)
    per_call = (spun.waits - waits) / (len(calls) - before)
    # Once for the timer, once for its end, which lets others of the group run.
    assert per_call <= 2.3


def test_a_timer_that_is_not_wanted_costs_nothing_and_comes_back_at_once(spun):
    calls, wanted = [], False
    group = MutuallyExclusiveCallbackGroup()
    timer = PausedTimer(spun.node, 0.02, lambda: calls.append(time.monotonic()), group, STEADY)
    time.sleep(0.3)
    assert not calls
    began_s = time.monotonic()
    timer.run_if(lambda: True)
    timer.run_if(lambda: True)
    assert wait_for(lambda: len(calls) > 3)
    assert calls[0] - began_s >= 0.02
    timer.run_if(lambda: wanted)
    time.sleep(0.05)
    count = len(calls)
    time.sleep(0.2)
    assert len(calls) == count


def test_a_timer_that_is_cancelled_before_its_turn_is_no_fault(spun):
    still = rclpy.create_node("still", context=spun.context)
    timer = still.create_timer(0.001, lambda: None, clock=STEADY)
    time.sleep(0.01)
    timer.cancel()
    assert _take_timer(timer) is None
    timer.reset()
    assert _take_timer(timer) is timer.callback
    still.destroy_node()


def test_a_guard_that_is_ready_with_another_of_its_group_comes_after_it(spun):
    executor, node = (
        CallbackExecutor(2, context=spun.context),
        rclpy.create_node("by_hand", context=spun.context),
    )
    executor.add_node(node)
    group, free, calls = MutuallyExclusiveCallbackGroup(), threading.Event(), []

    def work():
        timer.cancel()
        free.wait(20)

    timer = node.create_timer(0.001, work, group, clock=STEADY)
    guard = node.create_guard_condition(lambda: calls.append(1), group)
    time.sleep(0.01)
    guard.trigger()
    # One wait finds both, and takes the guard's trigger away.
    for _ in range(5):
        executor.spin_once(timeout_sec=0.05)
    assert not calls
    free.set()
    assert wait_for(lambda: executor.spin_once(timeout_sec=0.05) or calls, 5.0)
    executor.release()
    executor.shutdown()
    node.destroy_node()


def test_another_rclpy_gets_its_own_executor(monkeypatch, caplog):
    made = []
    monkeypatch.setattr(callback_executor, "MultiThreadedExecutor", made.append)
    monkeypatch.setattr(callback_executor, "NEEDED", ((rclpy, ("NoSuchThing",)),))
    callback_executor.make_executor(3)
    assert made == [3]
    assert "NoSuchThing" in caplog.text
