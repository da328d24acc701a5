"""A node with a life cycle (a managed node of ROS 2) around one part: a failed start is a named error.

configure   creates the part: settings, files, libraries, network. Nothing is published or moved yet.
activate    starts it, and waits until it is ready (the robot stands, the cloud was contacted) or has failed.
deactivate  brings it to rest, the robot first, and frees it; the next activate creates a new one.
cleanup     as deactivate; the settings are read again by the next configure.

With `autostart`, the default, the process makes the first two transitions by itself, and a failure ends it,
so that `ros2 run`, a plain launch file and a supervisor need no lifecycle manager. Without it a failure is
a refused transition, logged in one line, and the node stays in its state.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Protocol

from rclpy.action import ActionServer
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node

from vlm_spec_decode.core.errors import VsdError
from vlm_spec_decode.ros.params import AUTOSTART, Parameters

POLL_S = 0.02
SWEEP_S = 5.0


class NodePart(Protocol):
    """The interface of a node class to the process that runs it."""

    @property
    def is_settled(self) -> bool:
        """Whether the start has succeeded or failed, or may take arbitrarily long."""
        ...

    def begin(self) -> None:
        """Start to subscribe, publish and act. Returns at once."""
        ...

    def close(self) -> None:
        """Stop everything (the robot first) and free it. Idempotent, bounded in time."""
        ...


class StopRequest(Protocol):
    """Ends the process, or the node's activity, from inside; `error` is the reason."""

    def __call__(self, error: VsdError | None = None) -> None:
        """Request the end; the first call decides the exit code."""
        ...


Build = Callable[[Node, StopRequest], NodePart]


class Entities:
    """The entities that a part creates on a node, so that they can be removed again.

    An executor fails while it builds its wait set if another thread destroys an entity, so `mark` only
    marks them, and the spinning thread destroys them between two spins.
    """

    KINDS: ClassVar[Mapping[str, str]] = {
        "publishers": "publisher",
        "subscriptions": "subscription",
        "clients": "client",
        "services": "service",
        "timers": "timer",
        "guards": "guard_condition",
    }
    SERVER = "action server"

    def __init__(self, node: Node) -> None:
        """All entities that exist now are the node's own."""
        self._node = node
        self._own = {id(entity) for _, entity in self._all()}
        self._marked: list[tuple[str, Any]] = []
        self._swept = threading.Condition()

    def mark(self) -> None:
        """Mark all entities that were created later for destruction."""
        with self._swept:
            doomed = {id(entity) for _, entity in self._marked}
            self._marked += [e for e in self._all() if id(e[1]) not in self._own | doomed]

    def mark_one(self, kind: str, entity: Any) -> None:
        """Mark one entity, such as a `subscription`, for destruction."""
        with self._swept:
            self._marked.append((kind, entity))

    def destroy_marked(self) -> None:
        """Destroy the marked entities. Call it on the spinning thread, between two spins."""
        with self._swept:
            for name, entity in self._marked:
                if name == self.SERVER:
                    entity.destroy()
                else:
                    getattr(self._node, f"destroy_{name}")(entity)
            self._marked = []
            self._swept.notify_all()

    def wait(self) -> None:
        """Wait until no entity is marked any more, or nothing spins."""
        with self._swept:
            self._swept.wait_for(lambda: not self._marked, SWEEP_S)

    def _all(self) -> list[tuple[str, Any]]:
        found = [(name, entity) for kind, name in self.KINDS.items() for entity in getattr(self._node, kind)]
        return found + [
            (self.SERVER, each) for each in self._node.waitables if isinstance(each, ActionServer)
        ]


class ManagedNode(LifecycleNode):  # type: ignore[misc]  # rclpy has no types here
    """A managed node. `stop` ends the process; with `autostart` the part's own failures do so too."""

    def __init__(self, name: str, build: Build, stop: StopRequest, **options: Any) -> None:
        """Create the node and declare `autostart`; nothing else happens yet."""
        super().__init__(name, **options)
        self._build, self._stop = build, stop
        self.autostart = Parameters(self, (AUTOSTART,)).flag(AUTOSTART.name)
        self._part: NodePart | None = None
        self._failure: VsdError | None = None
        self._is_acting = self._is_closed = False
        self._changing = threading.RLock()
        self._entities = Entities(self)

    def bring_up(self) -> None:
        """Configure and activate on this thread, without waiting for the robot.

        Raises the errors of the part.
        """
        self._part = self._build(self, self._failed)
        self.trigger_configure()
        self._begin()
        self.trigger_activate()

    def destroy_marked(self) -> None:
        """Destroy the entities of a freed part. Call it between two spins."""
        self._entities.destroy_marked()

    def destroy_later(self, subscription: Any) -> None:
        """Destroy a subscription of a part between two spins."""
        self._entities.mark_one("subscription", subscription)

    def close(self) -> None:
        """Close the part, in any state. Idempotent."""
        self._is_closed = True
        part = self._part
        if part is not None:
            part.close()

    # Transitions; a refused one leaves the state unchanged -------------------------------------------

    def on_configure(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Create the part."""
        return self._attempt(self._make)

    def on_activate(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Start the part, and wait until it is ready or has failed."""
        return TransitionCallbackReturn.SUCCESS if self._is_acting else self._attempt(self._begin_and_wait)

    def on_deactivate(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and free the part."""
        return self._attempt(self._free)

    def on_cleanup(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything."""
        return self._attempt(self._free)

    def on_shutdown(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything and end the process."""
        done = self._attempt(self._free)
        self._stop()
        return done

    def on_error(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Return to unconfigured after an unexpected error, which is in the log."""
        return self._attempt(self._free)

    def _attempt(self, step: Callable[[], None]) -> TransitionCallbackReturn:
        """Run a step. A named error refuses the transition; any other error is logged as a bug."""
        is_through = False
        try:
            with self._changing:
                step()
            is_through = True
        except VsdError as error:
            self.get_logger().error(f"{type(error).__name__}: {error}")
            return TransitionCallbackReturn.FAILURE
        finally:
            if not is_through:
                if sys.exc_info()[0] is not None:  # rclpy swallows it
                    self.get_logger().error(traceback.format_exc())
                self._free()
        return TransitionCallbackReturn.SUCCESS

    def _make(self) -> None:
        if self._part is None:
            self._entities.wait()
            self._part = self._build(self, self._failed)

    def _begin(self) -> None:
        self._make()
        self._failure = None
        if self._part is not None:
            self._part.begin()
        self._is_acting = True

    def _begin_and_wait(self) -> None:
        self._begin()
        pause = threading.Event()
        while not (self._is_closed or self._failure or (self._part is None or self._part.is_settled)):
            pause.wait(POLL_S)
        if self._failure is not None:
            raise self._failure

    def _free(self) -> None:
        with self._changing:
            part, self._part, self._is_acting = self._part, None, False
            if part is not None:
                part.close()
            self._entities.mark()
        if self.executor is not None:
            self.executor.wake()

    def _failed(self, error: VsdError | None = None) -> None:
        """Handle a part's failure: end the process, or only deactivate the node."""
        if self.autostart:
            self._stop(error)
            return
        self._failure = error
        # On another thread: `close` may wait for the part's own thread.
        threading.Thread(target=partial(self._give_up, error), daemon=True).start()

    def _give_up(self, error: VsdError | None) -> None:
        with self._changing:
            if self._is_acting and self._failure is error:
                self.get_logger().error(f"{type(error).__name__}: {error}")
                self.trigger_deactivate()
