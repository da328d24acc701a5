"""Where a training runs: device, number format, and synchronised processes.

A GPU is used if there is one. Weights, optimizer and loss stay in float32; only the forward pass may run in
bfloat16. bfloat16 is native on some CPUs and emulated, several times slower, on others, which no processor
name tells: so one step of the training is timed in both formats.

With several processes each draws its own batches, and gradients are averaged. The matrices of models this
small are too small to split between threads; a second process with one thread gains nearly a second core.

Attention stays in float32 on a CPU, whose kernel for its backward pass is several times slower in bfloat16.
"""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, get_args

import numpy as np
import torch
import torch.distributed as dist
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from vlm_spec_decode.core.errors import ConfigError, ModelError
from vlm_spec_decode.models.hardware import check_device

Precision: TypeAlias = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

MIN_GAIN = 1.15
"""bfloat16 rounds to three digits, so it is chosen only if it is this many times faster."""

_TIMED = 2

ATTENTION = "sdpa_float32_on_cpu"
"""Name of the attention that models in training use, registered with Transformers."""


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention [B, heads, L, d], computed in float32 on a CPU."""
    if query.device.type != "cpu" or query.dtype == torch.float32:
        found, _ = sdpa_attention_forward(module, query, key, value, mask, **options)
        return found, None
    with torch.autocast("cpu", enabled=False):
        mask = mask.float() if mask is not None and mask.is_floating_point() else mask
        found, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), mask, **options)
    return found.to(query.dtype), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


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
        """Return the fields of the training record."""
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


class GradientHolder(Protocol):
    """An object that holds gradients."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""


class Trained(Protocol):
    """The part of a training state used here. `precision` is that of its steps so far, None before any."""

    @property
    def optimizer(self) -> GradientHolder:
        """The optimizer of its steps."""

    precision: Precision | None


def choose(
    trained: Trained,
    wanted: Precision | Literal["auto"],
    device: torch.device,
    probe: Callable[[], Callable[[], torch.Tensor]],
) -> Hardware:
    """Return device and precision: as requested, else as the run began, else by timing one step.

    `probe` makes the loss to be timed, and is called only then. The choice is stored in `trained`.
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

    `forward` returns the loss. Gradients are set, weights are not changed.
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


T = TypeVar("T")

ENDED = "one of the training's processes has ended; run it again, it goes on from its last checkpoint"


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """This process's rank in a group that trains together; by default a group of one."""

    rank: int = 0
    size: int = 1

    @property
    def is_leader(self) -> bool:
        """Whether this process is the leader, which measures, logs and saves."""
        return self.rank == 0

    def rng(self, *key: int) -> np.random.Generator:
        """Return the generator of one draw. The leader's draws are those of a single process."""
        return np.random.default_rng([*key, self.rank] if self.rank else key)

    def average(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its mean over the group. Raises ModelError if a process has ended."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with _named():
            dist.all_reduce(flat)
        parts = torch.split(flat / self.size, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def broadcast(self, value: str) -> str:
        """Return the leader's value."""
        if self.size == 1:
            return value
        box = [value]
        with _named():
            dist.broadcast_object_list(box)
        return box[0]


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's error for a lost peer
        raise ModelError(ENDED) from error


def run_in_processes(work: Callable[[WorkerGroup], T], size: int) -> T:
    """Run `work` in `size` processes, with this one as the leader, and return its result in this process.

    It must be picklable. Raises the errors of `work` in this process, ModelError if another one has ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        spawn = multiprocessing.get_context("spawn")
        others = [
            spawn.Process(target=_run_worker, args=(work, rank, size, meeting), daemon=True)
            for rank in range(1, size)
        ]
        for process in others:
            process.start()
        try:
            return _run_in_group(work, WorkerGroup(0, size), meeting)
        finally:
            for process in others:
                process.terminate()
                process.join()


def _run_worker(work: Callable[[WorkerGroup], object], rank: int, size: int, meeting: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the leader is interrupted, and ends the others
    _run_in_group(work, WorkerGroup(rank, size), meeting)


def _run_in_group(work: Callable[[WorkerGroup], T], workers: WorkerGroup, meeting: Path) -> T:
    with _named():
        dist.init_process_group(
            "gloo", init_method=meeting.as_uri(), rank=workers.rank, world_size=workers.size
        )
    try:
        return work(workers)
    finally:
        dist.destroy_process_group()
