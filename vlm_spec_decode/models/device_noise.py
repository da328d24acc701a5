"""The integers behind the noise of `decoding.sampling`, in torch: the same bits on every device.

SplitMix64 needs products and shifts of 64 bits without sign. torch has signed ones only: products, sums and
exclusive ors have the same bits, and a shift is made to fill with zeros. Nothing here takes a logarithm, for
its last bit would be the device's own.
"""

from __future__ import annotations

import torch
from torch import Tensor


def device_noise_parts(key: int | Tensor, ids: Tensor) -> Tensor:
    """Return 1 - u of the noise of `ids` [n] in float32: `decoding.sampling.noise_parts` in torch.

    `key` as a signed integer, or a column [rows, 1] of such keys: then [rows, n].
    """
    x = (ids + 1) * signed(0x9E3779B97F4A7C15)
    x = x + (signed(key) if isinstance(key, int) else key)
    # In place: whole rows of a large vocabulary would otherwise take a dozen times their room.
    x.bitwise_xor_(_shifted(x, 30)).mul_(signed(0xBF58476D1CE4E5B9))
    x.bitwise_xor_(_shifted(x, 27)).mul_(signed(0x94D049BB133111EB))
    x.bitwise_xor_(_shifted(x, 31))
    bits = _shifted(x, 11)
    return bits.neg_().add_(2**53).to(torch.float32).sub_(0.5).mul_(2.0**-53)


def signed(value: int) -> int:
    """Return the int64 with the same bits: torch has signed integers, whose products have the same bits."""
    return value - 2**64 if value >= 2**63 else value


def _shifted(x: Tensor, by: int) -> Tensor:
    """Shift right and fill with zeros, which torch does not do for signed numbers."""
    return (x >> by).bitwise_and_((1 << (64 - by)) - 1)
