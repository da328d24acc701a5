"""What a GPU chooses with waits for the device a fixed number of times, and decides nothing by its rounding.

No GPU is needed: an operation that makes the host wait is seen as it is called, on a CPU, and cannot be
called at all on torch's meta device, which has shapes and no numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from test.models.test_choose import masks_of
from vlm_spec_decode.core.errors import NotFinite, OutOfMemory
from vlm_spec_decode.core.types import SamplingParams
from vlm_spec_decode.decoding.choices import DenseChoices
from vlm_spec_decode.decoding.sampling import gumbel_noise_at, noise_counter, noise_parts
from vlm_spec_decode.decoding.verify import verify_coupled
from vlm_spec_decode.models import choose_batch
from vlm_spec_decode.models.choose_batch import ROUGH, BatchChoices
from vlm_spec_decode.models.device_noise import device_noise_parts, signed
from vlm_spec_decode.models.row_search import LEAST_NOISE

WAITING = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "bincount",
    "_unique",
    "equal",
    "repeat_interleave",
)
"""Operations whose result has a shape, or is a number, that the host must wait for."""

SETTINGS = {
    "greedy": SamplingParams(),
    "sampled": SamplingParams(temperature=0.7, top_p=0.9, seed=5),
    "uncut": SamplingParams(temperature=1.0, seed=6),
    "top_k": SamplingParams(temperature=0.8, top_k=40, top_p=0.95, seed=7),
    "rejection": SamplingParams(temperature=0.7, rule="rejection"),
}


class Waits(TorchDispatchMode):
    """Counts operations that make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        places = args[1] if name in ("index", "index_put", "index_put_") else ()
        # A mask as an index is looked through for its ones, which has a shape that only the device knows.
        masks = any(place is not None and place.dtype == torch.bool for place in places)
        self.count += name.startswith(WAITING) or masks
        return func(*args, **(kwargs or {}))


@contextmanager
def transfers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The sizes of what is brought to the host."""
    sizes = list[int]()

    def counted(values: torch.Tensor) -> Any:
        sizes.append(values.numel())
        return values.numpy()

    with monkeypatch.context() as patched:
        patched.setattr(choose_batch, "to_host", counted)
        patched.setattr(choose_batch, "queue_to_host", lambda values: partial(counted, values))
        yield sizes


def logits_of(kind: str, rows: int, size: int = 32_000) -> torch.Tensor:
    logits = torch.randn(rows, size, generator=torch.Generator().manual_seed(rows))
    if kind == "sharp":
        logits *= 3
        logits[:, 7:12] += 15
    return logits.bfloat16() if kind == "bf16" else logits


@pytest.mark.parametrize("kind", ["flat", "sharp", "bf16"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_host_waits_as_often_for_many_rows_as_for_one(
    setting: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, counts = SETTINGS[setting], set()
    for rows in (1, 5, 24):
        logits = logits_of(kind, rows)
        positions = range(rows)
        with transfers(monkeypatch) as sizes, Waits() as waits:
            choices = BatchChoices(logits).legal([masks_of(32_000, 1)[0]] * rows)
            rankings = choices.ranked(range(rows), positions, params, 6, summed=False)
        assert len(sizes) <= 2
        assert max(sizes) < 1000 * rows
        assert waits.count == 0
        counts.add(len(sizes))
        plain = DenseChoices(choices.logits).ranked(range(rows), positions, params, 6)
        assert [r.tokens for r in rankings] == [r.tokens for r in plain]
    assert len(counts) == 1


def test_a_look_at_every_row_is_counted() -> None:
    """The count can fail: what decides on the host what to look at next waits again and again."""
    with Waits() as waits:
        for row in logits_of("flat", 4):
            assert float(row[(row >= row.max()).nonzero()[0, 0]]) == float(row[row == row.max()][0])
    assert waits.count > 4 * 4


@pytest.mark.parametrize("setting", SETTINGS)
def test_nothing_is_read_before_the_one_transfer(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device every look at a number is an error."""
    choices = BatchChoices(torch.empty(24, 151_936, device="meta")).legal([masks_of(151_936, 1)[0]] * 24)
    params = SETTINGS[setting]

    class Reached(Exception):
        pass

    def reached(_values: torch.Tensor) -> None:
        raise Reached

    monkeypatch.setattr(choose_batch, "to_host", reached)
    monkeypatch.setattr(choose_batch, "queue_to_host", reached)
    calls: list[Callable[[], object]] = [
        lambda: choices.pick(range(24), range(24), params),
        lambda: choices.prefetch(range(24), params),
        lambda: choices.ranked((0, 5, 3), (1, 2, 3), params, 6),
        lambda: choices.confidence(3, 2),
    ]
    if not params.top_k:
        calls.append(lambda: choices.distribution(3, params, 1 << 40))
    for call in calls:
        with pytest.raises(Reached):
            call()
    assert choose_batch.nucleus_mask(choices.scores, SETTINGS["sampled"]).shape == (24, 151_936)


def test_a_verdict_takes_one_transfer_for_the_whole_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk of eight accepted nodes among 24 rows."""
    logits = logits_of("flat", 25)
    path = logits.argmax(1).tolist()[:8]
    tokens, parents = (*path, *range(16)), (*range(8), *([3] * 16))
    with transfers(monkeypatch) as sizes, Waits() as waits:
        verdict = verify_coupled(BatchChoices(logits), tokens, parents, 4, SamplingParams(max_tokens=99))
    assert verdict == verify_coupled(
        DenseChoices(logits.numpy()), tokens, parents, 4, SamplingParams(max_tokens=99)
    )
    assert verdict.row == 8
    assert (len(sizes), waits.count) == (1, 0)


def test_only_a_row_that_is_asked_for_has_to_be_usable() -> None:
    """Row 3 holds NaN; a walk that never comes to it is not disturbed, and one that does is told."""
    logits = logits_of("flat", 5)
    logits[3, 7] = torch.nan
    for params in (SamplingParams(), SETTINGS["sampled"], SETTINGS["uncut"]):
        choices = BatchChoices(logits)
        pick = choices.pick_each(range(5), params)
        plain = DenseChoices(logits[[0, 1, 2, 4]].numpy())
        assert [pick(row) for row in (0, 1, 2, 4)] == plain.pick(range(4), (0, 1, 2, 4), params)
        with pytest.raises(NotFinite):
            pick(3)
        with pytest.raises(NotFinite):
            choices.ranked((3,), (3,), params, 2)


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_is_chosen_ahead_is_not_asked_again(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    params, choices = SETTINGS[setting], BatchChoices(logits_of("flat", 9))
    wanted = BatchChoices(choices.scores).pick(range(9), range(9), params)
    finish = choices.prefetch(range(9), params)
    finish()
    with transfers(monkeypatch) as sizes, Waits() as waits:
        pick = choices.pick_each(range(9), params)
        assert [pick(row) for row in range(9)] == wanted
    assert (sizes, waits.count) == ([], 0)
    # Other rows, other masks and other positions are other questions.
    assert choices.part(2, 4).pick_each((2, 3), params)(0) == wanted[2]
    other = choices.part(0, 3).legal([masks_of(32_000, 1)[1]] * 3)
    assert other.pick_each((0, 1, 2), params)(0) in other.allowed[0].ids  # type: ignore[index,union-attr]


def test_without_memory_for_choosing_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(choose_batch, "_greatest", full)
    choices = BatchChoices(logits_of("flat", 3))
    with pytest.raises(OutOfMemory, match="choosing"):
        choices.prefetch(range(3), SETTINGS["sampled"])


@pytest.mark.parametrize("top_p", [1e-12, 0.01, 0.5, 0.9, 0.999999])
@pytest.mark.parametrize("kind", ["flat", "sharp", "bf16", "equal", "cut"])
def test_a_nucleus_is_found_without_sorting(kind: str, top_p: float) -> None:
    logits = logits_of(kind, 3, 5000).float()
    if kind == "equal":
        logits = torch.full_like(logits, -1.5)
        logits[1, ::2] = 0.0
        logits[1, 1::2] = -0.0
    elif kind == "cut":
        logits[:, torch.rand(5000, generator=torch.Generator().manual_seed(1)) < 0.7] = -torch.inf
    params = SamplingParams(temperature=0.7, top_p=top_p)
    found = choose_batch.nucleus_mask(logits, params)
    for row, mask in zip(logits.double() / 0.7, found, strict=True):
        order = torch.sort(row, descending=True, stable=True).indices
        sums = torch.softmax(row, 0)[order].cumsum(0)
        wanted = torch.zeros(5000, dtype=torch.bool)
        wanted[order[: int((sums < max(top_p - 1e-9, 1e-300)).sum()) + 1]] = True
        assert torch.equal(mask, wanted)


def test_noise_is_the_same_on_every_device() -> None:
    """Four million draws: equal bits of numpy's and torch's integers, and rough noise within its bound.

    Whatever decides is reckoned by numpy on the host from these bits. A device's own logarithm only says
    which ids are looked at, and may be off by `ROUGH` before it can leave out one that matters.
    """
    ids = np.arange(131_072, dtype=np.int64)
    keys = [noise_counter(seed, position) for seed in (0, 2**63, 2**64 - 1, 12345) for position in range(8)]
    column = torch.tensor([signed(key) for key in keys])[:, None]
    parts = device_noise_parts(column, torch.from_numpy(ids))
    rough = torch.log1p(-parts).neg().log().neg().clamp(min=LEAST_NOISE).numpy()
    assert rough.size > 4_000_000
    for key, mine in zip(keys, parts.numpy(), strict=True):
        assert np.array_equal(mine, noise_parts(key, None, len(ids), 32_768))
        assert np.array_equal(mine, device_noise_parts(signed(key), torch.from_numpy(ids)).numpy())
    for seed in (0, 2**63, 2**64 - 1, 12345):
        for position in range(8):
            exact = gumbel_noise_at(seed, position, ids)
            noise = rough[keys.index(noise_counter(seed, position))]
            assert (exact - noise).max() < ROUGH / 2
            assert (noise - exact)[exact > LEAST_NOISE].max() < ROUGH


@pytest.mark.parametrize("setting", ["sampled", "uncut"])
def test_a_logarithm_that_is_off_changes_no_choice(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose logarithm is wrong in its tenth bit chooses the same ids."""
    logits, params = logits_of("flat", 12), SETTINGS[setting]
    exact = BatchChoices(logits).ranked(range(12), range(12), params, 6, summed=False)
    noise = choose_batch._noise

    def off(*args: Any) -> torch.Tensor:
        rough = noise(*args)
        return rough + 5e-4 * torch.randn(rough.shape, generator=torch.Generator().manual_seed(3)).clamp(
            -1, 1
        )

    monkeypatch.setattr(choose_batch, "_noise", off)
    found = BatchChoices(logits).ranked(range(12), range(12), params, 6, summed=False)
    assert [ranking[:2] for ranking in found] == [ranking[:2] for ranking in exact]
