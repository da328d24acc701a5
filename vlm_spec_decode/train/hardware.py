"""Where a training runs and in which number format: a GPU if there is one, and what measuring finds faster.

Knows torch and time; nothing of models, batches or files. Weights, optimizer and loss stay in float32; only
the forward pass may run in bfloat16. bfloat16 is native on some CPUs and emulated, several times slower, on
others, and no name of a processor says which: so one step of the very training is timed in both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, get_args

import torch

from vlm_spec_decode.core.errors import ConfigError, ModelError
from vlm_spec_decode.models.device import check_device

Precision: TypeAlias = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

MIN_GAIN = 1.15
"""bfloat16 rounds to three digits: it has to be so many times faster to be chosen."""

_TIMED = 2


@dataclass(frozen=True, slots=True)
class Hardware:
    """Device and number format of a training; `step_ms` is what a step took in each format, if timed."""

    device: torch.device
    precision: Precision = "float32"
    step_ms: dict[str, float] = field(default_factory=dict)

    def autocast(self) -> torch.autocast:
        """Return the context in which the forward pass runs."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    def record(self) -> dict[str, object]:
        """Return what belongs beside the weights."""
        return {"device": self.device.type, "precision": self.precision, "step_ms": dict(self.step_ms)}


def pick_device(name: str = "auto") -> torch.device:
    """Return the device `name`; `auto` is a GPU if there is one. Raises ConfigError if it is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"there is no device {name}: say auto, cpu or cuda") from error
    try:
        check_device(name)
    except ModelError as error:
        raise ConfigError(str(error)) from error
    return device


class Forgetting(Protocol):
    """What holds gradients."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget them."""


class Trained(Protocol):
    """What trains, as far as this module goes; `precision` is that of its steps so far, None before any."""

    @property
    def optimizer(self) -> Forgetting:
        """What its steps are taken with."""

    precision: Precision | None


def choose(
    trained: Trained,
    wanted: Precision | Literal["auto"],
    device: torch.device,
    probe: Callable[[], Callable[[], torch.Tensor]],
) -> Hardware:
    """Return where and how to train: as it is wanted, as the run began, or as one step's timing says.

    `probe` makes the loss to be timed, only where it is needed. What was chosen is kept in `trained`.
    """
    chosen = trained.precision if wanted == "auto" else wanted
    if chosen:
        hardware = Hardware(device, chosen)
    else:
        hardware = measured(device, probe())
        trained.optimizer.zero_grad(set_to_none=True)
    trained.precision = hardware.precision
    return hardware


def measured(device: torch.device, forward: Callable[[], torch.Tensor]) -> Hardware:
    """Time forward and backward pass of one batch in both formats; return the faster hardware setting.

    `forward` returns the loss. Gradients are left behind, weights are not touched.
    """
    step_ms: dict[str, float] = {p: _step_ms(Hardware(device, p), forward) for p in PRECISIONS}
    gain = step_ms["float32"] / step_ms["bfloat16"]
    return Hardware(device, "bfloat16" if gain >= MIN_GAIN else "float32", step_ms)


def _step_ms(hardware: Hardware, forward: Callable[[], torch.Tensor]) -> float:
    """Return the shortest of a few timings, in ms; the first, which warms up, does not count."""
    took = []
    for _ in range(1 + _TIMED):
        begin_s = time.perf_counter()
        with hardware.autocast():
            loss = forward()
        loss.backward()  # type: ignore[no-untyped-call]
        if hardware.device.type == "cuda":
            torch.cuda.synchronize(hardware.device)
        took.append((time.perf_counter() - begin_s) * 1e3)
    return round(min(took[1:]), 2)
