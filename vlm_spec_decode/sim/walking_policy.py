"""The learned walking policy: what the body feels in, twelve joint targets out.

A feed-forward network, trained elsewhere by reinforcement learning to track a velocity; the order and the
scales of what goes in and comes out are those of its training (rl_sar, `policy/go2/robot_lab`). Knows no
simulator. By itself it ignores slow commands and drifts, so that `VelocityTrim` closes the loop around it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.sim.physical_assets import HOW

Vector = npt.NDArray[np.float64]

PERIOD_S = 0.02
STIFFNESS, DAMPING = 20.0, 0.5
"""Of the joints' position control in training, N m/rad and N m s/rad."""

NEUTRAL_RAD: Vector = np.array([0.0, 0.8, -1.5] * 4)
_ACTION_SCALE = np.array([0.125, 0.25, 0.25] * 4)
_TURN_SCALE, _JOINT_SPEED_SCALE = 0.25, 0.05
_BOUND = 100.0


class WalkingPolicy:
    """The network with what it remembers: its last action. Joints are FR FL RR RL x hip, thigh, calf."""

    def __init__(self, file: Path) -> None:
        """Load it. Raises ConfigError if onnxruntime is missing, or the file is no such network."""
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ConfigError(f"the physical body needs onnxruntime; install it with: {HOW}") from error
        options = onnxruntime.SessionOptions()
        # One small product per step: threads would cost more than they save, and hold a core between steps.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        (entry,), (end,) = self._session.get_inputs(), self._session.get_outputs()
        if entry.shape[-1] != 45 or end.shape[-1] != 12:
            raise ConfigError(f"{file} maps {entry.shape} to {end.shape}, not 45 numbers to 12")
        self._entry = entry.name
        self.reset()

    def reset(self) -> None:
        """Forget the last action."""
        self._last: Vector = np.zeros(12)

    def targets(self, turning: Vector, down: Vector, joints: Vector, speeds: Vector, asked: Vector) -> Vector:
        """Return joint angles to hold for the next 20 ms [12].

        `turning` is the trunk's angular velocity and `down` the direction of gravity, both in its own frame
        [3]; `joints` and `speeds` are the legs' [12]; `asked` is vx, vy, vyaw.
        """
        felt = np.concatenate(
            [
                turning * _TURN_SCALE,
                down,
                asked,
                joints - NEUTRAL_RAD,
                speeds * _JOINT_SPEED_SCALE,
                self._last,
            ]
        )
        row = np.clip(felt, -_BOUND, _BOUND).astype(np.float32)[None]
        (out,) = self._session.run(None, {self._entry: row})
        self._last = np.clip(np.asarray(out[0], dtype=np.float64), -_BOUND, _BOUND)
        wanted: Vector = NEUTRAL_RAD + self._last * _ACTION_SCALE
        return wanted


class VelocityTrim:
    """Integral control around the policy: what must be asked so that the body does what was asked.

    Compares the body's velocity with the one asked for, both through the same low pass, so that starting
    and stopping, which no body does at once, winds nothing up.
    """

    smoothing_s = 0.3
    gain = np.array([3.0, 3.0, 3.0])
    limit = np.array([0.4, 0.3, 0.6])

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew, from rest."""
        self._behind: Vector = np.zeros(3)
        self._trim: Vector = np.zeros(3)

    def correct(self, asked: Vector, measured: Vector) -> Vector:
        """Return what to ask of the policy; called every 20 ms."""
        share = PERIOD_S / (self.smoothing_s + PERIOD_S)
        self._behind += share * ((asked - measured) - self._behind)
        self._trim = np.clip(self._trim + self.gain * self._behind * PERIOD_S, -self.limit, self.limit)
        corrected: Vector = asked + self._trim
        return corrected
