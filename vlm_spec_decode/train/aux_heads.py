"""New auxiliary heads for a trained vision tower: a finished model's folder has the tower and not its heads.

Random heads would send their first gradients into the tower and destroy its features. So the heads are
trained first, while the tower is frozen.
"""

from __future__ import annotations

import torch

from vlm_spec_decode.train.batches import Batcher
from vlm_spec_decode.train.hardware import WorkerGroup
from vlm_spec_decode.train.network import image_features
from vlm_spec_decode.train.training_state import TrainingState

STEPS = 300
RATE = 1e-2
"""Constant, and falling linearly to nothing over the second half."""


def fit_heads(
    trainee: TrainingState, batcher: Batcher, images: int, seed: int, crew: WorkerGroup, steps: int = STEPS
) -> float:
    """Train the heads alone for `steps` of `images` each, and return the last loss. The eye stays."""
    optimizer = torch.optim.AdamW(trainee.heads.parameters(), RATE)
    loss = torch.zeros(())
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, 2 * (steps - step) / steps)
        views = batcher.views(crew.rng(seed, 0x4EAD, step), images).to(trainee.device)
        with torch.no_grad():
            features = image_features(trainee.model, views.pixels)
        loss = trainee.heads.loss(features, views.patch_labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        crew.average(trainee.heads.parameters())
        optimizer.step()
    return loss.item()
