"""Training in step in several processes: each draws batches of its own, and their gradients are averaged.

The matrices of models this small are too small to split between threads; a second process with a thread of
its own is worth nearly a second core. Knows torch's process groups; nothing of models or data.
"""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from vlm_spec_decode.core.errors import ModelError

T = TypeVar("T")

ENDED = "one of the training's processes has ended; run it again, it goes on from its last checkpoint"


@dataclass(frozen=True, slots=True)
class Crew:
    """This process's place among those that train together; alone by default."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that measures, logs and saves."""
        return self.rank == 0

    def rng(self, *key: int) -> np.random.Generator:
        """Return the generator of one draw. The leader draws what it would draw alone."""
        return np.random.default_rng([*key, self.rank] if self.rank else key)

    def average(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its mean over the crew. Raises ModelError if one of it has ended."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with _named():
            dist.all_reduce(flat)
        parts = torch.split(flat / self.size, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def agree(self, said: str) -> str:
        """Return what the leader said."""
        if self.size == 1:
            return said
        box = [said]
        with _named():
            dist.broadcast_object_list(box)
        return box[0]


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # how gloo says that the other end is gone
        raise ModelError(ENDED) from error


def in_step(work: Callable[[Crew], T], size: int) -> T:
    """Run `work` in `size` processes, this one leading, and return what it returns here.

    It must be picklable. Raises what `work` raises here, ModelError if another process has ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        spawn = multiprocessing.get_context("spawn")
        others = [
            spawn.Process(target=_member, args=(work, rank, size, meeting), daemon=True)
            for rank in range(1, size)
        ]
        for process in others:
            process.start()
        try:
            return _enlisted(work, Crew(0, size), meeting)
        finally:
            for process in others:
                process.terminate()
                process.join()


def _member(work: Callable[[Crew], object], rank: int, size: int, meeting: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the leader is interrupted, and ends the others
    _enlisted(work, Crew(rank, size), meeting)


def _enlisted(work: Callable[[Crew], T], crew: Crew, meeting: Path) -> T:
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=crew.rank, world_size=crew.size)
    try:
        return work(crew)
    finally:
        dist.destroy_process_group()
