"""Processes that train in step. Few imports: the other process makes them again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlm_spec_decode.core.errors import ModelError
from vlm_spec_decode.train.hardware import WorkerGroup, run_in_processes


def test_alone_the_crew_draws_what_was_always_drawn() -> None:
    assert WorkerGroup().rng(3, 0, 5).random() == np.random.default_rng([3, 0, 5]).random()
    assert WorkerGroup(1, 2).rng(3, 0, 5).random() != WorkerGroup().rng(3, 0, 5).random()


def test_a_crew_that_loses_a_member_says_so() -> None:
    with pytest.raises(ModelError, match="goes on from its last checkpoint"):
        run_in_processes(_half_a_step, 2)


def _half_a_step(crew: WorkerGroup) -> None:
    """The other process ends before the gradients are averaged."""
    if crew.is_leader:
        weights = torch.nn.Parameter(torch.zeros(3))
        weights.grad = torch.ones(3)
        crew.average([weights])
