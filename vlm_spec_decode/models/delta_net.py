"""The gated delta rule on a tree: what a recurrent layer remembers of one answer, and how it adds nodes.

A gated delta net (2412.06464) has a state S [key width, value width] per head. A token decays it, reads what
it says under the token's key, and writes the part of the value that was not there:

    S_t = exp(g_t) S_{t-1} + k_t u_t^T,   u_t = beta_t (v_t - exp(g_t) S_{t-1}^T k_t),   o_t = S_t^T q_t

A rejected token cannot be taken out of such a state. So no state is kept for a node: only S0, the one behind
the prompt, and of every node its key k, its correction u and its decay c, the sum of g from the prompt down
to it. Unrolled along the path to node i, with D_ij = exp(c_i - c_j) if i sees j (j is i or above it), else 0:

    S_i = exp(c_i) S0 + sum_j D_ij k_j u_j^T
    u_i = beta_i (v_i - exp(c_i) S0^T k_i - sum_{j != i} D_ij (k_j . k_i) u_j)

The second line is a triangular system, since ancestors come first: the chunk form of the rule (2406.06484)
with the ancestor mask in place of the causal one. Removing a node is removing an index. docs/delta_nets.md
has the derivation. Knows slots and tensors; no layer, family or session.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlm_spec_decode.models.hardware import to_device
from vlm_spec_decode.models.kv_slots import SlotTable

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class TreeRows:
    """Where the new nodes of a pass stand in their answer's tree.

    `prompt` counts the prompt's rows in this pass, before the nodes: 0 in all passes but the first. A node is
    a slot behind the prompt; there are m, of which the last n are new. `sees` [n, m] is true where a new node
    has another one, or itself, on its path. `windows` [n, kernel] are the rows of `DeltaPast.inputs` that a
    causal convolution looks at from each new node: its own is the last. `nearest` [n] is how many nodes there
    are up to the nearest old one on its path: 0 is the prompt.
    """

    prompt: int
    sees: Tensor
    windows: Tensor
    nearest: Tensor

    @classmethod
    def of(
        cls, slots: SlotTable, first: int, prompt: int, kernel: int, device: torch.device = CPU
    ) -> TreeRows:
        """Return the rows of the slots from `first` on; slot 0, the prompt's end, is no node."""
        first = max(first, 1)
        visible = slots.visible(first)
        # Ancestors have lower numbers, so the nearest old one is the last old slot on the path.
        nearest = first - 1 - visible[:, :first][:, ::-1].argmax(axis=1)
        # Rows of inputs: kernel - 1 of the prompt, the last of which is slot 0, then the nodes. One step up
        # from a node is its parent; one step up within the prompt is the row before.
        shift = kernel - 2
        up = np.array([*range(-1, shift), *(parent + shift for parent in slots.parents[1:])])
        window = [np.arange(first, len(slots)) + shift]
        for _ in range(kernel - 1):
            window.append(up[window[-1]])
        arrays = visible[:, 1:].copy(), np.stack(window[::-1], axis=1), nearest
        return cls(prompt, *(to_device(array, device) for array in arrays))

    def to(self, device: torch.device) -> TreeRows:
        """Return the same on a device."""
        moved = (part.to(device) for part in (self.sees, self.windows, self.nearest))
        return TreeRows(self.prompt, *moved)


@dataclass(frozen=True, slots=True)
class Gates:
    """What tokens do to a state: `decay` g [heads, n], at most 0; `strength` beta [heads, n] of a write."""

    decay: Tensor
    strength: Tensor


class DeltaPast:
    """What one recurrent layer remembers of one answer: the state behind the prompt, and its nodes.

    `state` [heads, dk, dv] is S0. `inputs` [kernel - 1 + nodes, channels] are those of the convolution, the
    prompt's last ones first, `keys` [key heads, nodes, dk], `updates` [heads, nodes, dv] the corrections u,
    `decays` [heads, 1 + nodes] the sums c, the prompt's 0 first. A key head serves several value heads that
    lie beside each other.
    """

    def __init__(self, state: Tensor, inputs: Tensor, key_heads: int) -> None:
        heads, key_width, value_width = state.shape
        self.state = state
        self.inputs = inputs
        self.keys = state.new_empty(key_heads, 0, key_width)
        self.updates = state.new_empty(heads, 0, value_width)
        # Differences of long sums: after a few hundred tokens 24 bits would leave errors of 1e-4 in D.
        exact = torch.float32 if state.device.type == "mps" else torch.float64
        self.decays = torch.zeros(heads, 1, dtype=exact, device=state.device)
        self._lead = len(inputs)

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        parts = (self.state, self.inputs, self.keys, self.updates, self.decays)
        return sum(int(part.nbytes) for part in parts)

    def convolve(self, inputs: Tensor, rows: TreeRows, weight: Tensor) -> Tensor:
        """Add the new nodes' inputs [n, channels]; return each one convolved with its ancestors' before it.

        `weight` is [channels, kernel]. Sums are in float32 and rounded once, as in torch's own convolution,
        which takes four times as long for windows that do not overlap.
        """
        self.inputs = torch.cat([self.inputs, inputs])
        total = inputs.new_zeros(inputs.shape, dtype=torch.float32)
        for tap, at in zip(weight.T.float().contiguous(), rows.windows.unbind(1), strict=True):
            total.addcmul_(self.inputs[at].float(), tap)
        return total.to(inputs.dtype)

    def extend(self, query: Tensor, key: Tensor, value: Tensor, gates: Gates, rows: TreeRows) -> Tensor:
        """Add nodes and return what the layer reads at each of them [heads, n, dv].

        `query`, `key` [key heads, n, dk] are of length 1 (the query's 1 / sqrt(dk)), `value` [heads, n, dv].
        Nodes come behind their ancestors. All in float32.
        """
        count, old = len(rows.sees), self.keys.shape[1]
        shared = len(value) // len(key)
        # c_i: the sum at the nearest node that was there, and what the new nodes on the path add to it.
        own = rows.sees[:, old:].to(self.decays.dtype)
        sums = self.decays[:, rows.nearest] + gates.decay.to(self.decays.dtype) @ own.T
        self.decays = torch.cat([self.decays, sums], dim=1)
        self.keys = torch.cat([self.keys, key], dim=1)
        # D_ij = exp(c_i - c_j) where i sees j. Elsewhere the difference may be large and positive, so it is
        # masked before the exponential overflows.
        between = (sums[:, :, None] - self.decays[:, None, 1:]).float()
        decay = between.masked_fill(~rows.sees, -torch.inf).exp()
        # k_i . k_j and q_i . k_j are the same for all value heads of a key head.
        both = torch.cat([key, query], dim=1)
        products = (both @ self.keys.mT).repeat_interleave(shared, dim=0)
        overlap, attention = torch.split(products, count, dim=1)
        # exp(c_i) S0^T k_i and exp(c_i) S0^T q_i: what is left of the prompt.
        remembered = both.repeat_interleave(shared, dim=0) @ self.state
        remembered = remembered * sums.exp().float().repeat(1, 2)[..., None]
        key_left, query_left = torch.split(remembered, count, dim=1)
        # (1 + A) u = beta (v - what is left of the prompt - what old nodes say), A strictly lower triangular:
        # the solver takes ones for the diagonal and does not look at what stands there.
        strength = gates.strength[..., None]
        system = strength * overlap * decay
        wanted = strength * (value - key_left) - system[:, :, :old] @ self.updates
        updates: Tensor = torch.linalg.solve_triangular(
            system[:, :, old:], wanted, upper=False, unitriangular=True
        )
        self.updates = torch.cat([self.updates, updates], dim=1)
        # o_i = S_i^T q_i, by the first line of the module's page.
        return query_left + (attention * decay) @ self.updates

    def gather(self, nodes: Tensor) -> None:
        """Keep these nodes, indices in host memory, in this order."""
        kept = to_device(nodes, self.state.device)
        ahead = torch.arange(self._lead, device=kept.device)
        self.inputs = self.inputs[torch.cat([ahead, kept + self._lead])]
        self.keys, self.updates = self.keys[:, kept], self.updates[:, kept]
        self.decays = self.decays[:, torch.cat([ahead[:1], kept + 1])]

    def cut(self, nodes: int) -> None:
        """Keep the first `nodes`, of each part by itself: a pass that broke off leaves some longer."""
        self.inputs = self.inputs[: self._lead + nodes]
        self.keys, self.updates = self.keys[:, :nodes], self.updates[:, :nodes]
        self.decays = self.decays[:, : 1 + nodes]
