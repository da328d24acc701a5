"""The executor of the node processes: rclpy's multi-threaded one, with a wait set that is kept between waits.

rclpy (up to 9 at least) makes a new wait set before every wait, from every entity of the node and in Python,
and wakes up two to three times for each callback: a millisecond of a core per callback, of which a robot's
computer has some seventy a second while nothing happens. Here

- entities are listed, and kept from being freed, until the nodes have others;
- the end of a callback wakes the waiting thread, its beginning does so only where the group is reentrant;
- events of quality of service, two for each publisher and subscription, are looked at once a second, because
  all that comes of them is a warning in the log;
- timers and subscriptions with plain functions go to the worker threads without a task around them. All other
  work (services, actions, coroutines) takes rclpy's own way.

The rules of callback groups are rclpy's. Messages, requests and timers wake it at once, as there.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from queue import Empty, SimpleQueue
from typing import Any, ClassVar

import rclpy.timer
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.exceptions import InvalidHandle
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.subscription import Subscription
from rclpy.waitable import NumberOfEntities

log = logging.getLogger(__name__)

EVENTS_S = 1.0
"""Period of looking at events of quality of service."""

KINDS = {
    "subscription": "subscriptions",
    "guard_condition": "guards",
    "timer": "timers",
    "client": "clients",
    "service": "services",
}
"""Kinds of entities by their names in a wait set, in the order of its counts, and where a node lists each."""

EVENT_TYPES = ("EventHandler", "QoSEventHandler")
"""Names of the class of an event of quality of service; the second one is the older."""

# Not in every version of rclpy.
_TimerInfo = getattr(rclpy.timer, "TimerInfo", None)
_Cancelled = getattr(rclpy_implementation, "TimerCancelledError", rclpy_implementation.RCLError)

NEEDED = (
    (rclpy_implementation, ("WaitSet",)),
    (Subscription, ("CallbackType",)),
    (MultiThreadedExecutor, ("_make_handler", "_take_waitable", "can_execute", "wake", "get_nodes")),
)
"""What is used of rclpy beyond its public names, as versions 7 (Jazzy) to 9 (Kilted) have it."""


def make_executor(num_threads: int) -> MultiThreadedExecutor:
    """Return the executor of a node process: rclpy's own one in a version that is built in another way."""
    lacking = [name for owner, names in NEEDED for name in names if not hasattr(owner, name)]
    lacking += [name for name in CallbackExecutor.TAKES.values() if not hasattr(CallbackExecutor, name)]
    if lacking:
        log.warning("this rclpy has no %s: its own executor is used, which takes more time", lacking[0])
        return MultiThreadedExecutor(num_threads)
    return CallbackExecutor(num_threads)


class _Entity:
    """What can be waited for, and how its callback is run."""

    __slots__ = ("group", "handle", "kind", "node", "own", "served", "take")

    def __init__(self, own: Any, kind: str, node: Any) -> None:
        self.own, self.kind, self.node = own, kind, node
        self.group, self.handle = own.callback_group, own.handle
        self.served = 0
        """Number of its last turn."""
        self.take = _taker(own, kind)


def _taker(own: Any, kind: str) -> Callable[[], Callable[[], object] | None] | None:
    """Return what takes the turn of a timer or subscription and returns its callback.

    None: only rclpy's own way will do.
    """
    if kind not in ("timer", "subscription") or inspect.iscoroutinefunction(own.callback):
        return None
    if kind == "timer":
        parameters = inspect.signature(own.callback).parameters.values()
        wants_info = _TimerInfo is not None and any(each.annotation == _TimerInfo for each in parameters)
        return None if wants_info else lambda: _take_timer(own)
    is_plain = own._callback_type is Subscription.CallbackType.MessageOnly
    return (lambda: _take_message(own)) if is_plain else None


def _take_timer(timer: Any) -> Callable[[], object] | None:
    with suppress(InvalidHandle, _Cancelled), timer.handle:
        # Newer versions tell a timer that was cancelled meanwhile from an error.
        getattr(timer.handle, "call_timer_with_info", timer.handle.call_timer)()
        callback: Callable[[], object] = timer.callback
        return callback
    return None


def _take_message(subscription: Any) -> Callable[[], object] | None:
    with suppress(InvalidHandle), subscription.handle:
        taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)
        if taken is not None:
            return lambda: subscription.callback(taken[0])
    return None


class _KeptEntities:
    """The entities of nodes, which are in use until the nodes have others, and wait sets that hold them."""

    def __init__(self) -> None:
        self._in_use = ExitStack()
        self._listed: list[Any] = []
        self.groups: list[tuple[Any, list[_Entity]]] = []
        self.waitables: list[tuple[Any, Any]] = []
        self.events: list[tuple[Any, Any]] = []
        self.by_pointer: dict[tuple[str, int], _Entity] = {}
        self.wait_set: Any = None
        self.event_set: Any = None

    def refresh(self, nodes: Sequence[Any], guards: Sequence[Any], context: Any) -> None:
        """List the entities if the nodes have others than before. `guards` are the executor's own."""
        listed: list[Any] = [*nodes, *guards]
        for node in nodes:
            listed += [list(getattr(node, plural)) for plural in KINDS.values()]
            listed.append(list(node.waitables))
        if listed == self._listed:
            return
        self.release()
        self._listed = listed
        size = NumberOfEntities(num_gcs=len(guards))
        self._in_use.enter_context(context.handle)
        for guard in guards:
            self._in_use.enter_context(guard.handle)
        lists = iter(listed[len(nodes) + len(guards) :])
        for node in nodes:
            for kind in KINDS:
                size += self._list(kind, next(lists), node)
            size += self._list_waitables(next(lists), node)
        self.wait_set = _wait_set(size, context)
        self.event_set = _wait_set(NumberOfEntities(num_events=len(self.events)), context)

    def release(self) -> None:
        """Forget all entities, so that those that were destroyed meanwhile are freed."""
        self.groups, self.waitables, self.events, self.by_pointer = [], [], [], {}
        self._listed, self.wait_set, self.event_set = [], None, None
        self._in_use.close()

    def _list(self, kind: str, found: Sequence[Any], node: Any) -> Any:
        groups = {id(group): entities for group, entities in self.groups}
        used = [own for own in found if own.callback_group is not None and self._uses(own.handle)]
        for own in used:
            entity = self.by_pointer[kind, own.handle.pointer] = _Entity(own, kind, node)
            if id(entity.group) not in groups:
                groups[id(entity.group)] = []
                self.groups.append((entity.group, groups[id(entity.group)]))
            groups[id(entity.group)].append(entity)
        return NumberOfEntities(*(len(used) * (each == kind) for each in KINDS))

    def _list_waitables(self, found: Sequence[Any], node: Any) -> Any:
        size = NumberOfEntities()
        for each in found:
            if not self._uses(each):
                continue
            if type(each).__name__ in EVENT_TYPES:
                self.events.append((each, node))
            else:
                self.waitables.append((each, node))
                size += each.get_num_entities()
        return size

    def _uses(self, destroyable: Any) -> bool:
        """Keep an entity from being freed while it is listed; False if it is destroyed already."""
        try:
            self._in_use.enter_context(destroyable)
        except InvalidHandle:
            return False
        return True


def _wait_set(size: Any, context: Any) -> Any:
    counts = (size.num_subscriptions, size.num_guard_conditions, size.num_timers, size.num_clients)
    return rclpy_implementation.WaitSet(*counts, size.num_services, size.num_events, context.handle)


class CallbackExecutor(MultiThreadedExecutor):  # type: ignore[misc]  # rclpy has no types here
    """`spin_once` belongs to one thread. Once nothing spins any more, `release` what it keeps."""

    TAKES: ClassVar[dict[str, str]] = {
        "timer": "_take_timer",
        "subscription": "_take_subscription",
        "client": "_take_client",
        "service": "_take_service",
        "guard_condition": "_take_guard_condition",
    }
    """rclpy's own ways to take a turn."""

    def __init__(self, num_threads: int, *, context: Any = None) -> None:
        """Begin with no node; at most `num_threads` callbacks run at the same time."""
        self._tasks: list[tuple[Any, Any, Any]]
        super().__init__(num_threads, context=context)
        self._kept = _KeptEntities()
        self._faults: SimpleQueue[BaseException] = SimpleQueue()
        self._given: set[Any] = set()
        """Tasks of rclpy that wait for a worker thread."""
        self._turns = 0
        self._events_due_s = 0.0

    def spin_once(self, timeout_sec: float | None = None) -> None:
        """Wait for work, at most `timeout_sec`, and give it to the worker threads.

        Raises what a callback has raised, and ExternalShutdownException if the context has ended.
        """
        self._raise_fault()
        if self._is_shutdown or self._guard is None:
            return
        guards = [each for each in (self._guard, self._sigint_gc) if each]
        self._kept.refresh(self.get_nodes(), guards, self._context)
        self._look_at_events()
        self._give_tasks()
        for entity in self._wait(timeout_sec, guards):
            self._give(entity)
        self._give_tasks()
        self._raise_fault()

    def release(self) -> None:
        """Forget the nodes' entities, so that they can be freed."""
        self._kept.release()

    # Waiting ---------------------------------------------------------------------------------------

    def _wait(self, timeout_s: float | None, guards: Sequence[Any]) -> list[_Entity]:
        """Wait, and return the entities that are ready, those first whose last turn is longest ago."""
        wait_set = self._kept.wait_set
        wait_set.clear_entities()
        for guard in guards:
            wait_set.add_guard_condition(guard.handle)
        adding = {kind: getattr(wait_set, f"add_{kind}") for kind in KINDS}
        for entity in self._waiting():
            if entity.kind == "guard_condition" and entity.own._executor_triggered:
                # It was triggered while its group was busy, and a wait takes the trigger away.
                entity.own.trigger()
            adding[entity.kind](entity.handle)
        waited = [each for each in self._kept.waitables if self.can_execute(each[0])]
        for waitable, _ in waited:
            waitable.add_to_wait_set(wait_set)
        wait_set.wait(-1 if timeout_s is None or timeout_s < 0 else int(timeout_s * 1e9))
        if not self._context.ok():
            raise ExternalShutdownException
        for waitable, node in waited:
            if waitable.is_ready(wait_set):
                self._make_handler(waitable, node, self._take_waitable)
        return sorted(self._ready(wait_set), key=lambda entity: entity.served)

    def _waiting(self) -> Iterator[_Entity]:
        """Yield the entities whose callbacks may run now."""
        for group, entities in self._kept.groups:
            if group.can_execute(entities[0].own):
                yield from (entity for entity in entities if not entity.own._executor_event)

    def _ready(self, wait_set: Any) -> Iterator[_Entity]:
        for kind in KINDS:
            for pointer in wait_set.get_ready_entities(kind):
                entity = self._kept.by_pointer.get((kind, pointer))
                if entity is None:
                    continue
                if kind == "guard_condition":
                    entity.own._executor_triggered = True
                # A timer that was cancelled meanwhile is no longer ready.
                if kind != "timer" or entity.handle.is_timer_ready():
                    yield entity

    def _look_at_events(self) -> None:
        """Make tasks of the events of quality of service that have happened, if it is time."""
        now_s = time.monotonic()
        if now_s < self._events_due_s or not self._kept.events:
            return
        self._events_due_s = now_s + EVENTS_S
        event_set = self._kept.event_set
        event_set.clear_entities()
        waited = [each for each in self._kept.events if self.can_execute(each[0])]
        for event, _ in waited:
            event.add_to_wait_set(event_set)
        event_set.wait(0)
        for event, node in waited:
            if event.is_ready(event_set):
                self._make_handler(event, node, self._take_waitable)

    # Running ---------------------------------------------------------------------------------------

    def _give(self, entity: _Entity) -> None:
        """Give a ready entity to a worker thread, unless one before it has made its group busy."""
        own, group = entity.own, entity.group
        if entity.take is None:
            if not group.can_execute(own):
                return
            self._make_handler(own, entity.node, getattr(self, self.TAKES[entity.kind]))
        elif group.beginning_execution(own):
            own._executor_event = True
            self._executor.submit(self._run, entity)
        else:
            return
        self._turns += 1
        entity.served = self._turns

    def _run(self, entity: _Entity) -> None:
        """Run the callback of an entity whose group it has begun."""
        assert entity.take is not None
        own, is_exclusive = entity.own, isinstance(entity.group, MutuallyExclusiveCallbackGroup)
        try:
            try:
                callback = entity.take()
            finally:
                if not is_exclusive:
                    # The next message is taken while this one is worked on.
                    own._executor_event = False
                    self.wake()
            if callback is not None:
                callback()
        except BaseException as fault:  # noqa: BLE001  # the spinning thread raises it, as in rclpy
            self._faults.put(fault)
        finally:
            if is_exclusive:
                own._executor_event = False
            entity.group.ending_execution(own)
            self.wake()

    def _give_tasks(self) -> None:
        """Give rclpy's tasks to worker threads: new ones, and those that wait for a future."""
        if not self._tasks:
            return
        with self._tasks_lock:
            ended = {task for task, _, _ in self._tasks if task.done() or task.cancelled()}
            self._tasks = [each for each in self._tasks if each[0] not in ended]
            open_tasks = [task for task, _, _ in self._tasks]
        for task in ended:
            if task.done() and (fault := task.exception()) is not None:
                self._faults.put(fault)
        for task in open_tasks:
            if not task.executing() and task not in self._given:
                self._given.add(task)
                self._executor.submit(self._run_task, task)

    def _run_task(self, task: Any) -> None:
        self._given.discard(task)
        task()
        if task.done():
            self.wake()

    def _raise_fault(self) -> None:
        with suppress(Empty):
            raise self._faults.get_nowait()
