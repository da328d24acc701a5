"""A `RobotDriver` for a Go2, through Unitree's SDK or another `RobotLink`; registered as `go2` and `sim`.

Its camera is in `robot.go2.sdk`. Motion and posture are read from the robot's state, and liveness from
the stamp of that state; return codes only show that a call was refused. Independent of simulation: every
peer that speaks the robot's DDS API is a robot.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from types import MappingProxyType

from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import RobotError, RobotRefused, RobotUnreachable
from vlm_spec_decode.core.ports import Camera, Clock
from vlm_spec_decode.core.robot import POSTURES, RobotState
from vlm_spec_decode.robot.go2 import codes
from vlm_spec_decode.robot.go2.codes import (
    BUSY,
    PLANS,
    WALKING_CODES,
    PostureStep,
    StateTable,
    steps_to_walk,
    unknown,
)
from vlm_spec_decode.robot.go2.config import Go2Config
from vlm_spec_decode.robot.go2.link import RobotLink, StateSource
from vlm_spec_decode.robot.registry import RobotAddress, RobotKind, RobotParts, check_settings
from vlm_spec_decode.robot.spec import Hull, Legs, RobotSpec

SPACING_S = 0.006
"""Time between Move and StopMove: in a burst the SDK's own server drops the newest request, the stop."""
RETRY_S = 0.5
"""How long the state may take to show an unanswered call before the call is made again."""
STOP_RETRY_S = 0.2
MOVE_HOLD_S = 1.2
"""A Move has ended after this time even if no stop was received (the robot holds it for 1 s)."""
LOOK_TOLERANCE_RAD = 0.06
SENT_ALWAYS = ("", "Damp")
"""Calls that a robot in an unknown state may be sent: those that only an operator can request."""

POLL_S = 0.01


def _through_sdk(config: Go2Config, clock: Clock) -> RobotLink:
    # Imported late: the SDK need not be installed where the robot is reached in another way.
    from vlm_spec_decode.robot.go2.sdk import connect

    return connect(config, clock)


class Go2Driver:
    """A `RobotDriver`. One thread moves it; `stop` and `state` may be called from any.

    While a stop is under way a Move is dropped, and after it no call of an earlier posture is made any more.
    """

    def __init__(
        self,
        config: Go2Config,
        clock: Clock | None = None,
        *,
        connect: Callable[[Go2Config, Clock], RobotLink] | None = None,
    ) -> None:
        """Store the settings. `start` connects, by `connect` (default: through the SDK)."""
        self._connect = connect or _through_sdk
        self._config = config
        self._clock = clock or WallClock()
        self._is_silent = False
        self._link: RobotLink | None = None
        self._posture_lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._stop_lock = threading.Lock()
        self._moved_s = -math.inf
        self._stops = 0

    def start(self) -> None:
        """Join, find the robot and bring it into a walking state.

        Raises RobotUnreachable (no such network, no state, no sport service), RobotRefused, RobotStale,
        DomainBusy, or RobotError (a state is not reached, or this DDS must not meet a real robot).
        """
        if self._link is None:
            self._link = self._connect(self._config, self._clock)
        self._find(self._link.feed)
        with self._posture_lock:
            stops, state = self._stops, self._settled()
            steps = steps_to_walk(state)
            if steps is None:
                raise RobotError(unknown(state))
            self._carry_out(steps, stops)

    def move(self, vx_mps: float, vy_mps: float, vyaw_radps: float) -> None:
        """Command a body velocity for at most 1 s; dropped while a stop is under way.

        The robot silently ignores it in states that do not walk. Raises RobotRefused if it cannot be
        sent, or RobotUnreachable before `start`.
        """
        # Floats always: some firmware takes an integer 0 for something else.
        velocity = (float(vx_mps), float(vy_mps), float(vyaw_radps))
        if not all(math.isfinite(value) for value in velocity):
            raise codes.refusal("Move", codes.BAD_PARAMETER)
        link = self._started()
        with self._send_lock:
            if self._stop_lock.locked():
                return
            code = link.move.call("Move", *velocity)
            self._moved_s = self._clock.now()
        codes.check("Move", code)

    def stop(self) -> None:
        """End all motion; returns when a state newer than the robot's answer shows a standstill.

        Raises RobotError or one of its kinds if none does within `stop_s`. Before `start` there is nothing
        to stop.
        """
        self._stops += 1
        if self._link is None:
            return
        with self._stop_lock:
            self._stop_until_still(self._link)

    def posture(self, name: str) -> None:
        """Carry out one of `codes.PLANS`; returns when the state confirms it.

        `stand_up` ends with locked joints, `rise` and `recovery_stand` in a state that walks. Raises
        RobotRefused (also for an unknown name, and if a stop comes before it is begun), RobotStale or
        RobotError.
        """
        if name not in PLANS:
            raise RobotRefused(name, f"unknown; known: {', '.join(PLANS)}", codes.NOT_IMPLEMENTED)
        stops = self._stops
        with self._posture_lock:
            self._carry_out(PLANS[name], stops)

    def look(self, pitch_rad: float, yaw_rad: float) -> None:
        """Tilt the standing body; returns when its pitch is reached. Raises as `posture` does."""
        stops = self._stops
        pitch, yaw = float(pitch_rad), float(yaw_rad)

        def is_there(state: RobotState) -> bool:
            return abs(state.pitch_rad - pitch) < LOOK_TOLERANCE_RAD

        with self._posture_lock:
            # The pitch may be reached already while the yaw, which no state shows, is not: always call.
            self._reach(PostureStep("Euler", is_there, (0.0, pitch, yaw)), stops, self._config.look_s)

    def state(self) -> RobotState:
        """Return the newest state. Raises RobotStale if its stamp stands still, or RobotUnreachable."""
        return self._started().feed.newest()

    def close(self) -> None:
        """Stop the robot and disconnect. Raises RobotError if the stop was not confirmed. Idempotent."""
        try:
            self.stop()
        finally:
            link, self._link = self._link, None
            if link is not None:
                link.close()

    def _started(self) -> RobotLink:
        if self._link is None:
            raise RobotUnreachable("the driver has not been started")
        return self._link

    def _find(self, feed: StateSource) -> None:
        """Wait for state and battery. Raises RobotUnreachable that names what is missing."""
        config = self._config
        if feed.wait(lambda _: feed.is_live(), self._clock.now() + config.first_state_s):
            return
        missing = config.low_topic if feed.is_moving() else config.state_topic
        raise RobotUnreachable(
            f"nothing arrives on {missing} (DDS domain {config.domain}, interface {config.interface!r}): "
            "robot off, sport service released, or another network"
        )

    def _settled(self) -> RobotState:
        """Return the state once its code is known, or has been unknown for `settle_s`."""
        until_s = self._clock.now() + self._config.settle_s
        while True:
            state = self.state()
            if state.is_known or state.is_down or self._clock.now() >= until_s:
                return state
            self._clock.sleep(POLL_S)

    def _carry_out(self, steps: tuple[PostureStep, ...], stops: int) -> None:
        for step in steps:
            state = self._settled()
            if step.call not in SENT_ALWAYS and not (state.is_known or state.is_down):
                raise RobotError(unknown(state))
            if not step.done(state):
                self._reach(step, stops, self._config.posture_s)

    def _reach(self, step: PostureStep, stops: int, within_s: float) -> None:
        """Call, then wait until the state shows the result. Only an unanswered call is repeated."""
        deadline_s = self._clock.now() + within_s
        call_s = self._clock.now() if step.call else math.inf
        code, unsure, called = codes.OK, False, not step.call
        name, arguments = step.call, step.arguments
        while not (called and step.done(self.state())):
            now_s = self._clock.now()
            if now_s >= deadline_s:
                raise self._not_reached(step, code, within_s)
            if now_s >= call_s:
                if self._stops != stops:
                    raise RobotRefused(step.call, "not called again: there has been a stop", code)
                code = self._started().posture.call(name, *arguments)
                if code == codes.NOT_IMPLEMENTED and step.instead and name != step.instead:
                    name, arguments = step.instead, ()
                    continue
                if code not in codes.UNCERTAIN and not unsure:
                    codes.check(step.call, code)
                # A refusal after an unanswered call: the first one was received and is being carried out.
                called, unsure = True, code in codes.UNCERTAIN
                call_s = self._clock.now() + RETRY_S if unsure else math.inf
            self._clock.sleep(POLL_S)

    def _not_reached(self, step: PostureStep, code: int, within_s: float) -> RobotError:
        call = step.call or "waiting for the end"
        if code == codes.CLIENT_SEND:
            return RobotUnreachable(f"{call}: {codes.meaning(code)}")
        if code != codes.OK:
            return codes.refusal(call, code)
        state = self.state()
        if not state.is_known:
            return RobotError(unknown(state))
        now = codes.state_name(state.code or 0)
        if state.code in BUSY:
            now += ", which only its remote or app ends; nothing was sent"
        return RobotError(f"{call} was taken, but after {within_s:g} s the robot is in state {now}")

    def _stop_until_still(self, link: RobotLink) -> None:
        # While the robot sends no state, nothing can confirm a stop. One stop waits for the state to return;
        # further ones are sent as well, but wait only for a moment.
        self._is_silent = self._is_silent and not link.feed.is_moving()
        deadline_s = self._clock.now() + (STOP_RETRY_S if self._is_silent else self._config.stop_s)
        while True:
            code = self._send_stop(link)
            answered_s = self._clock.now()

            def is_confirmed(state: RobotState, since_s: float = answered_s, code: int = code) -> bool:
                # Without an answer, a Move just sent may still begin; then its hold must have ended too.
                received = code == codes.OK or state.received_s > self._moved_s + MOVE_HOLD_S
                return received and state.received_s > since_s and state.is_still

            if link.feed.wait(is_confirmed, min(deadline_s, answered_s + STOP_RETRY_S)):
                return
            if self._clock.now() >= deadline_s:
                self._is_silent = not link.feed.is_moving()
                state = link.feed.newest()
                codes.check("StopMove", code)
                raise RobotError(
                    f"StopMove returned 0, but after {self._config.stop_s:g} s the body moves at "
                    f"{state.speed_mps:.2f} m/s and {state.vyaw_radps:.2f} rad/s"
                )

    def _send_stop(self, link: RobotLink) -> int:
        """Send one StopMove, well after the last Move, and return its code."""
        with self._send_lock:
            self._clock.sleep(self._moved_s + SPACING_S - self._clock.now())
            return link.stop.call("StopMove")


REAL_DOMAIN = 0
SIMULATED_INTERFACE, SIMULATED_DOMAIN = "lo", 1
"""Interface and domain of `vsd sim` by default."""

STOP_S = 1.2
"""How long one stop may wait for the state to confirm it: the end of a program makes up to three."""


LEGS = Legs(
    hip_x_m=0.1934,
    hip_y_m=0.0465,
    abduction_m=0.0955,
    thigh_m=0.213,
    calf_m=0.213,
    foot_radius_m=0.022,
    standing_rad=(0.0, 0.9, -1.8),
)
"""Of the vendor's description of the Go2, and its home pose."""


def _spec(name: str, title: str) -> RobotSpec:
    return RobotSpec(
        name=name,
        title=title,
        hull=Hull(length_m=0.70, width_m=0.32, height_m=0.40),
        max_speed_mps=3.7,
        max_turn_radps=4.0,
        postures=POSTURES,
        gestures=("hello", "stretch"),
        tilts=True,
        sensors=frozenset({"camera", "ranges", "battery"}),
        walking_codes=WALKING_CODES,
        legs=LEGS,
        settings=MappingProxyType(
            {"state_codes": "What codes of its state mean on its firmware, such as 2077 walk, 2078 lock."}
        ),
    )


def _parts(config: Go2Config, clock: Clock) -> RobotParts:
    def open_camera() -> Camera:
        # Imported late: the SDK takes a second to import, and `RobotSpec` is read without it.
        from vlm_spec_decode.robot.go2.sdk import Go2Camera

        return Go2Camera(config, clock)

    from vlm_spec_decode.robot.go2.sdk import DdsBoard

    return RobotParts(driver=Go2Driver(config, clock), open_camera=open_camera, boards=(DdsBoard(config),))


def _config(address: RobotAddress, interface: str | None, domain: int) -> Go2Config:
    return Go2Config(
        interface=address.interface if address.interface is not None else interface,
        domain=address.domain if address.domain is not None else domain,
        stop_s=STOP_S,
        states=StateTable.parse(address.settings.get("state_codes", "")),
    )


def _connect(address: RobotAddress, clock: Clock) -> RobotParts:
    check_settings(ROBOT, address)
    return _parts(_config(address, None, REAL_DOMAIN), clock)


def _connect_simulated(address: RobotAddress, clock: Clock) -> RobotParts:
    check_settings(SIMULATED, address)
    return _parts(_config(address, SIMULATED_INTERFACE, SIMULATED_DOMAIN), clock)


ROBOT = RobotKind(_spec("go2", "a Unitree Go2, through its SDK"), _connect)
SIMULATED = RobotKind(_spec("sim", "the Go2 of `vsd sim`, through the same SDK"), _connect_simulated)
