"""Small passes of one answer, recorded once for each of a few shapes and replayed: CUDA graphs.

A step of a small model is some hundred kernels of a few microseconds each, and starting one takes as long. A
recorded pass is started as a whole. What is recorded has fixed shapes and reads its inputs from fixed places:
rows and columns are padded to a few sizes, and inputs are copied to where the recording looks for them. Exits
stay early, for a recording ends at each of them. `record` is all that knows of CUDA, so that everything else
runs, and is tested, without a GPU.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from vlm_spec_decode.models.families.base import AnswerCache, Family
from vlm_spec_decode.models.kv_pool import KvPool
from vlm_spec_decode.models.varlen_attention import PooledBatch, VarlenEntry

Run: TypeAlias = Callable[[], None]
Angles: TypeAlias = Mapping[Any, tuple[Tensor, Tensor]]
"""Cosines and sines of a pass's rows, by the table that they are from."""
Key: TypeAlias = tuple[int, int, int, tuple[int, ...]]
"""Rows, columns, the pool's generation (a recording is of tensors that have not moved since), and which types
of layers share a mask."""

MOST_ROWS = 64
"""Larger passes keep a GPU busy by themselves."""

FEWEST_COLUMNS = 512
"""The first size of columns; the next are 768, 1,024, 1,536 and so on, each at most half as large again."""

MOST_RECORDINGS = 32
"""Each holds the room for its intermediate results; the one used longest ago makes way."""

USES_BEFORE = 2
"""A shape is recorded when it comes for the third time: recording takes as long as some ten passes."""


_RECORDING = threading.Lock()
"""A process records one CUDA graph at a time."""


def record_cuda(run: Run) -> Run:
    """Return what repeats the kernels that `run` starts.

    As torch's documentation of CUDA graphs asks: warmed up on a stream of its own, for libraries set up their
    workspaces at the first call, which cannot be recorded.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the GPU meanwhile, to open an answer say, but not record.
    with _RECORDING, torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()
    return graph.replay


def padded_rows(rows: int) -> int:
    """Return the next power of two."""
    return 1 << (rows - 1).bit_length()


def padded_columns(columns: int) -> int:
    """Return the next of 512, 768, 1,024, 1,536, …"""
    size = max(FEWEST_COLUMNS, 1 << (columns - 1).bit_length())
    return size * 3 // 4 if size > FEWEST_COLUMNS and columns <= size * 3 // 4 else size


class Layers(Protocol):
    """What is recorded: `models.decoder.Decoder`."""

    @property
    def stack(self) -> Any:
        """The layers' Transformers model."""

    @property
    def pool(self) -> KvPool | None:
        """Where keys and values lie."""

    @property
    def exits(self) -> Mapping[int, Any]:
        """The layers after which a pass is read early."""

    @property
    def depth(self) -> int:
        """Number of layers."""

    def run_layer(self, layer: int, hidden: Tensor, angles: Angles, *, batch: PooledBatch) -> Tensor:
        """Run layer `layer` (from 1) over rows [1, n, width]."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A pass in fixed places: its inputs, its parts up to each exit, and the states that they leave."""

    hidden: Tensor
    angles: Angles
    batch: PooledBatch
    states: dict[int, Tensor] = field(default_factory=dict)
    parts: list[tuple[int, Run]] = field(default_factory=list)

    def load(self, hidden: Tensor, angles: Angles, batch: PooledBatch) -> None:
        """Put the inputs of another pass into the same places; what the padding holds does not matter."""
        self.hidden[:, : hidden.shape[1]] = hidden
        for table, both in angles.items():
            for held, new in zip(self.angles[table], both, strict=True):
                held[:, : new.shape[1]] = new
        self.batch.copy_(batch)


class PassGraphs:
    """The recordings of one decoder. `record` makes what repeats a run."""

    def __init__(self, record: Callable[[Run], Run] = record_cuda) -> None:
        self._record = record
        self._recordings: OrderedDict[Key, Recording] = OrderedDict()
        self._uses: Counter[Key] = Counter()
        self._is_off = False

    def fits(self, family: Family, entries: Seq[VarlenEntry]) -> bool:
        """Tell whether a pass can be recorded: one answer, few rows, and layers that need nothing else."""
        entry = entries[0]
        is_small = len(entries) == 1 and entry.prompt is None and len(entry.embedded) <= MOST_ROWS
        is_plain = type(entry.cache) is AnswerCache and type(family).pass_context is Family.pass_context
        return is_small and is_plain and not self._is_off

    def run(
        self, decoder: Layers, entry: VarlenEntry, hidden: Tensor, angles: Angles
    ) -> Iterator[tuple[int, Tensor]]:
        """Run a pass that fits; yield what each exit and the last layer leave, [rows, width] each."""
        assert decoder.pool is not None
        count = len(entry.embedded)
        rows, columns = padded_rows(count), padded_columns(len(entry.cache.columns) + count)
        batch = PooledBatch.of(decoder.pool, [entry], fewest=(rows, columns))
        key = rows, columns, decoder.pool.generation, batch.shared_masks
        recording = self._recordings.get(key)
        if recording is None:
            recording = self._made(key, decoder, hidden, angles, batch)
        else:
            self._recordings.move_to_end(key)
            recording.load(hidden, angles, batch)
        for layer, replay in recording.parts:
            replay()
            # A copy, for the next pass overwrites what this one leaves.
            yield layer, recording.states[layer][0, :count].clone()

    def _made(
        self, key: Key, decoder: Layers, hidden: Tensor, angles: Angles, batch: PooledBatch
    ) -> Recording:
        """Return the pass in places of its own, recorded if its shape has come often enough."""
        held = {
            table: (_padded(cosines, key[0]), _padded(sines, key[0]))
            for table, (cosines, sines) in angles.items()
        }
        recording = Recording(_padded(hidden, key[0]), held, batch)
        first = 0
        for last in sorted({*decoder.exits, decoder.depth}):
            recording.parts.append((last, partial(_run_part, decoder, recording, first, last)))
            first = last
        self._uses[key] += 1
        if self._uses[key] > USES_BEFORE and not self._is_off:
            self._keep(key, recording)
        return recording

    def _keep(self, key: Key, recording: Recording) -> None:
        """Record the parts of a pass. If that fails, for want of memory say, nothing is recorded any more."""
        # Recordings of tensors that have moved since are of no use.
        for old in [old for old in self._recordings if old[2] != key[2]]:
            del self._recordings[old]
        while len(self._recordings) >= MOST_RECORDINGS:
            self._recordings.popitem(last=False)
        plain = list(recording.parts)
        try:
            for number, (last, run) in enumerate(plain):
                recording.parts[number] = last, self._record(run)
                # The next part is recorded from what this one leaves.
                recording.parts[number][1]()
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            recording.parts[:] = plain
            self._recordings.clear()
            self._is_off = True
            warnings.warn(f"passes are not recorded on this GPU: {error}", RuntimeWarning, stacklevel=2)
        else:
            self._recordings[key] = recording


def _run_part(decoder: Layers, recording: Recording, first: int, last: int) -> None:
    """Run the layers `first` + 1 to `last`; leave the states, normed at the end."""
    hidden = recording.states[first] if first else recording.hidden
    for layer in range(first + 1, last + 1):
        hidden = decoder.run_layer(layer, hidden, recording.angles, batch=recording.batch)
    recording.states[last] = decoder.stack.norm(hidden) if last == decoder.depth else hidden


def _padded(part: Tensor, rows: int) -> Tensor:
    """Return `part` [1, n, width] with rows of zeros behind it, as a tensor of its own."""
    larger = part.new_zeros(1, rows, part.shape[2])
    larger[:, : part.shape[1]] = part
    return larger
