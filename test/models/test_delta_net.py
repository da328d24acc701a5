"""The gated delta rule on trees, against the recurrence down each path in double precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from vlm_spec_decode.models.delta_net import DeltaPast, Gates, TreeRows
from vlm_spec_decode.models.kv_slots import SlotTable

KEY_HEADS, HEADS, KEY_WIDTH, VALUE_WIDTH, CHANNELS, KERNEL = 2, 6, 8, 12, 5, 4


@dataclass
class Tokens:
    """What a layer projects of every token that a test may place, by the token's number."""

    state: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    decay: Tensor
    strength: Tensor

    @classmethod
    def random(cls, count: int, seed: int, slowest: float = 0.002, fastest: float = 2.0) -> Tokens:
        """Decays are spread evenly on a log scale."""
        draw = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw)

        rates = torch.rand(HEADS, count, generator=draw)
        return cls(
            state=normal(HEADS, KEY_WIDTH, VALUE_WIDTH),
            query=torch.nn.functional.normalize(normal(KEY_HEADS, count, KEY_WIDTH), dim=-1),
            key=torch.nn.functional.normalize(normal(KEY_HEADS, count, KEY_WIDTH), dim=-1),
            value=normal(HEADS, count, VALUE_WIDTH),
            decay=-slowest * (fastest / slowest) ** rates,
            strength=torch.rand(HEADS, count, generator=draw),
        )

    def of(self, numbers: list[int]) -> tuple[Tensor, Tensor, Tensor, Gates]:
        at = torch.tensor(numbers, dtype=torch.long)
        gates = Gates(self.decay[:, at], self.strength[:, at])
        return self.query[:, at], self.key[:, at], self.value[:, at], gates

    def recurrence(self, path: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
        """Return what is read at the end of a path [heads, dv], a state after the other."""
        state, read = self.state.to(dtype), torch.zeros(HEADS, VALUE_WIDTH, dtype=dtype)
        for number in path:
            query, key = (
                part[:, number].to(dtype).repeat_interleave(HEADS // KEY_HEADS, dim=0)
                for part in (self.query, self.key)
            )
            state = state * self.decay[:, number].to(dtype).exp()[:, None, None]
            known = torch.einsum("hkv,hk->hv", state, key)
            update = self.strength[:, number].to(dtype)[:, None] * (self.value[:, number].to(dtype) - known)
            state = state + key[:, :, None] * update[:, None, :]
            read = torch.einsum("hkv,hk->hv", state, query)
        return read


class Life:
    """An answer's past and its slots; the number of a token is the number of its place in `Tokens`."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens, self.slots = tokens, SlotTable()
        self.past = DeltaPast(tokens.state, torch.zeros(KERNEL - 1, CHANNELS), KEY_HEADS)

    def add(self, parents: list[int], numbers: list[int]) -> Tensor:
        """Place tokens below slots and run them; return what they read [heads, n, dv]."""
        first = len(self.slots)
        for parent, number in zip(parents, numbers, strict=True):
            self.slots.add(parent, number)
        rows = self.convolve(first)
        return self.past.extend(*self.tokens.of(numbers), rows)

    def convolve(self, first: int) -> TreeRows:
        """Do the first half of what a layer does with the slots from `first` on."""
        rows = TreeRows.of(self.slots, first, 0, KERNEL)
        self.past.convolve(torch.ones(len(rows.sees), CHANNELS), rows, torch.ones(CHANNELS, KERNEL))
        return rows

    def drop(self, keep: np.ndarray) -> None:
        self.slots.gather(keep)
        self.past.gather(torch.from_numpy(keep[1:] - 1))


def error(life: Life, read: Tensor) -> float:
    """Return the greatest error of what the last slots read."""
    first = len(life.slots) - read.shape[1]
    wanted = [life.tokens.recurrence(life.slots.path(first + i)) for i in range(read.shape[1])]
    return float((read.double() - torch.stack(wanted, dim=1)).abs().max())


@pytest.mark.parametrize("seed", range(6))
def test_every_node_reads_what_its_path_alone_would_leave(seed: int) -> None:
    """Trees on trees, with branches dropped in between."""
    rng = np.random.default_rng(seed)
    life, number = Life(Tokens.random(200, seed)), 0
    for _ in range(8):
        count = int(rng.integers(1, 12))
        first = len(life.slots)
        parents = [int(rng.integers(0, first + i)) for i in range(count)]
        read = life.add(parents, list(range(number, number + count)))
        number += count
        assert error(life, read) < 1e-5
        if rng.random() < 0.5:
            life.drop(life.slots.alive(int(rng.integers(0, len(life.slots)))))
    # The control: with the prompt's state forgotten the same nodes read something else.
    life.past.state = torch.zeros_like(life.past.state)
    forgotten = life.add([0] * 3, [number, number + 1, number + 2])
    assert error(life, forgotten) > 0.1


def test_a_past_that_was_cut_goes_on_as_if_nothing_had_been_added() -> None:
    tokens = Tokens.random(20, 0)
    life, plain = Life(tokens), Life(tokens)
    for one in (life, plain):
        one.add([0, 1, 1], [0, 1, 2])
    life.add([3, 4], [3, 4])
    life.slots.gather(np.arange(4))
    life.past.cut(3)
    assert life.past.nbytes == plain.past.nbytes
    assert torch.equal(life.add([2, 3], [7, 8]), plain.add([2, 3], [7, 8]))


def test_a_past_that_broke_off_halfway_is_cut_part_by_part() -> None:
    """The convolution has its inputs before the rule has its keys."""
    life = Life(Tokens.random(20, 0))
    life.add([0], [0])
    held = life.past.nbytes
    life.slots.add(1, 1)
    life.convolve(2)
    assert life.past.nbytes > held
    life.past.cut(1)
    assert life.past.nbytes == held


@pytest.mark.parametrize("step", [1, 8, 600])
def test_a_long_answer_is_as_exact_as_a_recurrence_in_single_precision(step: int) -> None:
    """Some heads forget at once, others hardly: sums of decays grow large, differences of them stay small."""
    tokens = Tokens.random(600, 1, slowest=1e-4, fastest=16.0)

    def run(exact: torch.dtype) -> Tensor:
        life = Life(tokens)
        life.past.decays = life.past.decays.to(exact)
        parts = []
        for first in range(0, 600, step):
            numbers = list(range(first, first + step))
            parts.append(life.add(numbers, numbers))
        return torch.cat(parts, dim=1)

    at = [100, 300, 599]
    wanted, single = (
        torch.stack([tokens.recurrence(tuple(range(i + 1)), dtype) for i in at], dim=1)
        for dtype in (torch.float64, torch.float32)
    )
    noise = float((single.double() - wanted).abs().max())
    assert float((run(torch.float64)[:, at].double() - wanted).abs().max()) <= 3 * noise
    # What is gained by keeping the sums in double precision: without it the error is tens of times as large.
    assert float((run(torch.float32)[:, at].double() - wanted).abs().max()) > 10 * noise


@pytest.mark.parametrize("seed", range(3))
def test_a_node_is_convolved_with_its_own_ancestors(seed: int) -> None:
    rng, draw = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    prompt, weight = (
        torch.randn(KERNEL - 1, CHANNELS, generator=draw),
        torch.randn(CHANNELS, 4, generator=draw),
    )
    inputs = torch.randn(12, CHANNELS, generator=draw)
    slots, past = SlotTable(), DeltaPast(torch.zeros(HEADS, KEY_WIDTH, VALUE_WIDTH), prompt, KEY_HEADS)
    found = []
    for first in (0, 5):
        for number in range(first, first + (5 if not first else 7)):
            slots.add(int(rng.integers(0, len(slots))), number)
        rows = TreeRows.of(slots, first + 1, 0, KERNEL)
        found.append(past.convolve(inputs[first : len(slots) - 1], rows, weight))
    for slot in range(1, 13):
        line = torch.cat([prompt, inputs[list(slots.path(slot))]])
        wanted = torch.nn.functional.conv1d(line.T[None], weight[:, None], groups=CHANNELS)[0, :, -1]
        torch.testing.assert_close(torch.cat(found)[slot - 1], wanted, atol=1e-6, rtol=1e-6)


def test_rows_of_a_tree() -> None:
    """Slots 1 and 2 are old, a chain below the prompt; 3 hangs below 2, 4 below 3, 5 below the prompt."""
    slots = SlotTable()
    for token, parent in enumerate((0, 1, 2, 3, 0)):
        slots.add(parent, token)
    rows = TreeRows.of(slots, 3, 0, KERNEL)
    assert rows.sees.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 1]]
    assert rows.nearest.tolist() == [2, 2, 0]
    # Rows 0 to 2 of the inputs are the prompt's last, slot s is row s + 2.
    assert rows.windows.tolist() == [[2, 3, 4, 5], [3, 4, 5, 6], [0, 1, 2, 7]]
