"""The optimizer of vision models: Muon for the matrices of their layers, AdamW for everything else.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) makes each matrix's step orthogonal, so
that a few large directions do not suppress the others. On these models it reaches the loss of
AdamW in two thirds of the steps. torch.optim.Muon iterates in bfloat16, which a CPU without instructions for
it does fifteen times more slowly than this does in float32, for all matrices of a shape at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, TypeAlias

import torch

Named: TypeAlias = Iterable[tuple[str, torch.nn.Parameter]]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: steep at 0, and singular values end between 0.7 and 1.2."""

ITERATIONS = 5
RMS = 0.2
"""Of a step's entries, as AdamW's have it, so that both share rate and decay (arXiv 2502.16982, 2.2)."""

WEIGHT_DECAY = 0.05

OF_ADAM = 2.5
"""A matrix's rate over that of the rest, measured on the eye's first 600 steps."""


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are made orthogonal, for parameters of two dimensions."""

    def __init__(self, groups: Iterable[dict[str, Any]], rate: float, momentum: float = 0.95) -> None:
        super().__init__(groups, {"lr": rate, "momentum": momentum, "weight_decay": WEIGHT_DECAY})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure: nothing here looks for a step's length
        """Take one step along the gradients that there are."""
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[torch.Tensor]] = defaultdict(list)
            for weights in group["params"]:
                if weights.grad is not None:
                    alike[min(weights.shape), max(weights.shape)].append(weights)
            for (_, longer), matrices in alike.items():
                means = [_wide(self._momentum(w, group["momentum"])) for w in matrices]
                steps = orthogonal(torch.stack(means))
                for weights, step in zip(matrices, steps, strict=True):
                    weights.mul_(1 - group["lr"] * group["weight_decay"])
                    is_tall = weights.shape[0] > weights.shape[1]
                    weights.add_(step.T if is_tall else step, alpha=-group["lr"] * RMS * longer**0.5)

    def _momentum(self, weights: torch.Tensor, share: float) -> torch.Tensor:
        """Return Nesterov's: the running mean of the gradients as it will be."""
        state, gradient = self.state[weights], weights.grad
        assert gradient is not None
        if not state:
            state["mean"] = torch.zeros_like(weights)
        state["mean"].lerp_(gradient, 1 - share)
        nesterov: torch.Tensor = gradient.lerp(state["mean"], share)
        return nesterov


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Return the nearest matrices [N, m, n], m <= n, with singular values of about 1."""
    a, b, c = COEFFICIENTS
    found: torch.Tensor = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        square = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(square, square, square, beta=b, alpha=c), found, beta=a)
    return found


def _wide(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.T if matrix.shape[0] > matrix.shape[1] else matrix


class MuonWithAdamW:
    """Both as one optimizer. Each of `parts`, by name, has a group for its matrices and one for the rest.

    A group's `of_peak` says how its rate relates to `rate`, that of AdamW.
    """

    def __init__(self, parts: dict[str, Named], rate: float) -> None:
        split: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for part, parameters in parts.items():
            found: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
            for name, weights in parameters:
                found[weights.ndim == 2 and "layers." in name].append(weights)
            for is_matrix, weights_of in found.items():
                about = {"name": part, "of_peak": OF_ADAM if is_matrix else 1.0}
                split[is_matrix].append({"params": weights_of, **about})
        self._both: dict[str, torch.optim.Optimizer] = {
            "muon": Muon(split[True], rate),
            "adamw": torch.optim.AdamW(split[False], rate, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY),
        }

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both."""
        return [group for optimizer in self._both.values() for group in optimizer.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for optimizer in self._both.values():
            optimizer.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """Take one step along the gradients that there are."""
        for optimizer in self._both.values():
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it."""
        return {name: optimizer.state_dict() for name, optimizer in self._both.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a checkpoint's state. Raises KeyError for that of another kind of optimizer."""
        for name, optimizer in self._both.items():
            optimizer.load_state_dict(state[name])
