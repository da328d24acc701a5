"""Bytes of the rejection rule's distributions: a draft's q, and the target's sparse p.

Probabilities are integers, so both ends have exactly the same ones (docs/protocol.md).
"""

from __future__ import annotations

import itertools

from vlm_spec_decode.core.errors import ProtocolError
from vlm_spec_decode.core.types import SparseTarget, Support, Tokens
from vlm_spec_decode.decoding.choices import Q_UNIT
from vlm_spec_decode.decoding.verify import P_UNIT, Q_GRAIN, is_complete

Q_OWN_WEIGHTS, Q_WHOLE = 0, 1
"""First byte of a packed q: two bytes per node, or all of each node's short q."""

MAX_RESIDUAL_ENTRIES = 4096
_PART_BYTES = 5


def pack_q(q: tuple[Support, ...], width: int) -> bytes:
    """Return the bytes of one q per node; token ids take `width` bytes, the nodes' own are not repeated."""
    if all(is_complete(s) and all(w % Q_GRAIN == 0 for _, w in s) and len(s) <= 255 for s in q):
        return bytes([Q_WHOLE]) + b"".join(_pack_whole(support, width) for support in q)
    return bytes([Q_OWN_WEIGHTS]) + b"".join((s[0][1] - 1).to_bytes(2, "little") for s in q)


def unpack_q(data: bytes, tokens: Tokens, width: int, vocab_size: int) -> tuple[Support, ...]:
    """Return one q per token. Raises ProtocolError for data that is no distribution."""
    reader = _Reader(data)
    kind = reader.integer(1)
    q: tuple[Support, ...]
    if kind == Q_OWN_WEIGHTS:
        q = tuple(((token, reader.integer(2) + 1),) for token in tokens)
    elif kind == Q_WHOLE:
        q = tuple(_unpack_whole(reader, token, width, vocab_size) for token in tokens)
    else:
        raise ProtocolError(f"a q of kind {kind}")
    reader.check_end()
    return q


def pack_residual(target: SparseTarget, width: int) -> bytes:
    """Return the bytes of a sparse target: ids ascending with parts, the mass outside, tail samples."""
    pairs = tuple(zip(target.ids, target.parts, strict=True))
    sizes = (len(pairs) | target.is_cut << 15).to_bytes(2, "little") + len(target.tail).to_bytes(2, "little")
    entries = b"".join(
        token.to_bytes(width, "little") + (part - 1).to_bytes(_PART_BYTES, "little")
        for token, part in pairs + target.tail
    )
    return sizes + target.outside.to_bytes(_PART_BYTES, "little") + entries


def unpack_residual(data: bytes, width: int, vocab_size: int) -> SparseTarget:
    """Return the sparse target in `data`. Raises ProtocolError for data that is none."""
    reader = _Reader(data)
    head, samples = reader.integer(2), reader.integer(2)
    outside = reader.integer(_PART_BYTES)
    count, is_cut = head & 0x7FFF, bool(head >> 15)
    if not 0 < count <= MAX_RESIDUAL_ENTRIES or samples > MAX_RESIDUAL_ENTRIES:
        raise ProtocolError(f"a residual of {count} ids and {samples} samples")
    entries = tuple((reader.integer(width), reader.integer(_PART_BYTES) + 1) for _ in range(count + samples))
    reader.check_end()
    ids, parts = tuple(e[0] for e in entries[:count]), tuple(e[1] for e in entries[:count])
    tail = entries[count:]
    in_order = all(a < b for a, b in itertools.pairwise(ids))
    if not in_order or max(e[0] for e in entries) >= vocab_size or sum(parts) + outside != P_UNIT:
        raise ProtocolError("a residual that is no distribution")
    if any(token in ids or part > outside for token, part in tail):
        raise ProtocolError("a tail sample from inside the ids")
    return SparseTarget(ids, parts, outside, tail, is_cut)


def _pack_whole(support: Support, width: int) -> bytes:
    (_, own), *others = support
    body = b"".join(t.to_bytes(width, "little") + bytes([w // Q_GRAIN - 1]) for t, w in others)
    return bytes([len(others), own // Q_GRAIN - 1]) + body


def _unpack_whole(reader: _Reader, token: int, width: int, vocab_size: int) -> Support:
    count = reader.integer(1)
    support = [(token, (reader.integer(1) + 1) * Q_GRAIN)]
    support += [(reader.integer(width), (reader.integer(1) + 1) * Q_GRAIN) for _ in range(count)]
    ids = [t for t, _ in support]
    if len(set(ids)) != len(ids) or max(ids) >= vocab_size or sum(w for _, w in support) != Q_UNIT:
        raise ProtocolError("a q that is no distribution")
    return tuple(support)


class _Reader:
    """Reads little-endian integers from a byte string."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def integer(self, size: int) -> int:
        """Return the next `size` bytes as an integer. Raises ProtocolError at the end."""
        piece = self._data[self._offset : self._offset + size]
        if len(piece) < size:
            raise ProtocolError("a distribution that is cut off")
        self._offset += size
        return int.from_bytes(piece, "little")

    def check_end(self) -> None:
        """Check that all bytes were read. Raises ProtocolError."""
        if self._offset != len(self._data):
            raise ProtocolError("a distribution followed by more bytes")
