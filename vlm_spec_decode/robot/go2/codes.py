"""Return codes and state codes of the Go2, with names that people can act on.

Vendor's documentation and the public SDK's constants; knows nothing of DDS.
"""

from __future__ import annotations

from vlm_spec_decode.core.errors import RobotRefused

OK = 0
CLIENT_SEND = 3102
TIMEOUT = 3104
NOT_IMPLEMENTED = 3203
BAD_PARAMETER = 3204

UNCERTAIN = frozenset({CLIENT_SEND, TIMEOUT})
"""Codes after which the robot may or may not have heard the call; the state tells."""

RETURN_CODES: dict[int, str] = {
    OK: "ok",
    3001: "unknown error",
    CLIENT_SEND: "could not send: no service listens (sport service off, wrong interface or domain)",
    3103: "api id not registered in the client",
    TIMEOUT: "no reply in time",
    3105: "the reply belongs to another api",
    3106: "the reply's data cannot be read",
    3107: "lease invalid",
    3201: "the service could not send",
    3202: "the service failed inside",
    NOT_IMPLEMENTED: "not implemented by this robot's firmware",
    BAD_PARAMETER: "bad parameter",
    3205: "lease denied: another client holds the robot",
    3206: "no such lease",
    3207: "lease already held",
    4101: "wrong number of path points",
    4201: "the action took too long",
    4202: "state machine not initialised",
    4205: "state machine not initialised",
    4206: "posture unsuitable for the action",
    5201: "the service cannot be switched",
    5202: "the service is protected",
    7002: "mode selected too soon after a release; wait 10 s",
}

STATE_CODES: dict[int, str] = {
    100: "agile",
    1001: "damping",
    1002: "standing lock",
    1004: "crouch",
    1006: "acting (greeting, stretch, dance)",
    1007: "sit",
    1008: "front jump",
    1009: "pounce",
    1013: "balance stand",
    1015: "regular walk",
    1016: "regular run",
    1017: "endurance gait",
    1091: "pose",
    2006: "crouch",
    2007: "dodge",
    2008: "bound",
    2009: "jump-run",
    2010: "classic",
    2011: "handstand",
    2016: "cross-step",
    2017: "upright",
    2019: "towing",
}


def meaning(code: int) -> str:
    """Return what a return code says."""
    return RETURN_CODES.get(code, "code unknown to this package")


def state_name(code: int) -> str:
    """Return what a state code says, for messages: `1002 standing lock`."""
    return f"{code} {STATE_CODES.get(code, 'unknown state')}"


def refused(call: str, code: int) -> RobotRefused:
    """Return the error for a call that came back with `code`."""
    return RobotRefused(call, code, meaning(code))


def check(call: str, code: int) -> None:
    """Raise RobotRefused unless `code` is 0."""
    if code != OK:
        raise refused(call, code)
