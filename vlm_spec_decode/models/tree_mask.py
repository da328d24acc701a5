"""Which columns of a cache each row of a pass sees: tree attention, sliding windows and image blocks.

Works on a slot table and a prompt's length; knows no model. Columns are the prompt's, of which slot 0 is the
last one, then the slots in the order of the cache; rows are the slots of a pass, in the first pass with the
prompt's before them. Where a window does not bite, nothing is made for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlm_spec_decode.models.families.base import AttentionSpan
from vlm_spec_decode.models.hardware import to_device
from vlm_spec_decode.models.kv_slots import SlotTable, Visibility

Rows: TypeAlias = npt.NDArray[np.intp]
NO_ROWS: Rows = np.zeros(0, dtype=np.intp)


def sees_by_type(
    slots: SlotTable, first: int, prompt_len: int, image_rows: Rows, spans: Mapping[str, AttentionSpan]
) -> dict[str, Visibility | None]:
    """Return for each type of layers what the slots from `first` on see, [rows, columns].

    None where every row sees every column. `first` 0 is the pass that has the prompt's rows too, with those
    of its pictures in `image_rows` (ascending). Types that see the same share one array.
    """
    # Row i sees column j if j is i or one of its ancestors: this is all that makes a tree of a sequence
    # (tree attention, SpecInfer 2305.09781).
    plain = _ancestors(slots, first, prompt_len)
    # The window counts tokens of the row's own path: a node stands at (prompt's last position) + (its depth),
    # whatever its slot is. The prompt's first token is every row's ancestor, so it falls out first.
    deepest = prompt_len - 1 + max(slots.positions[first:])
    known: dict[tuple[int | None, bool], Visibility | None] = {(None, False): plain}
    found = {}
    for name, span in spans.items():
        window = span.window if span.window is not None and span.window <= deepest else None
        blocks = span.image_blocks and not first and len(image_rows) > 0
        key = (window, blocks)
        if key not in known:
            known[key] = _limited(plain, slots, first, prompt_len, window, image_rows if blocks else NO_ROWS)
        found[name] = known[key]
    return found


def additive(sees: Visibility | None, like: Tensor) -> Tensor | None:
    """Return the mask [1, 1, rows, columns] to be added to attention's scores, in the format of `like`."""
    if sees is None:
        return None
    mask = torch.zeros(sees.shape, dtype=like.dtype)
    mask.masked_fill_(torch.from_numpy(~sees), torch.finfo(mask.dtype).min)
    return to_device(mask[None, None], like.device)


def _ancestors(slots: SlotTable, first: int, prompt_len: int) -> Visibility | None:
    nodes = slots.visible(max(first, 1))
    rows = len(nodes) if first else prompt_len + len(nodes)
    if nodes.all() and (first or rows == 1):  # one more token of a chain, most of the time
        return None
    sees = np.ones((rows, prompt_len - 1 + len(slots)), dtype=np.bool_)
    if not first:
        # The prompt itself is causal: row i sees columns 0 to i.
        sees[:prompt_len] = np.tri(prompt_len, sees.shape[1], dtype=np.bool_)
    sees[rows - len(nodes) :, prompt_len - 1 :] = nodes
    return sees


def _limited(
    plain: Visibility | None,
    slots: SlotTable,
    first: int,
    prompt_len: int,
    window: int | None,
    image_rows: Rows,
) -> Visibility:
    """Return `plain`, with the blocks of the pictures `image_rows` and within `window`."""
    columns = np.concatenate([np.arange(prompt_len - 1), prompt_len - 1 + np.asarray(slots.positions)])
    rows = columns[prompt_len - 1 + first :] if first else columns
    sees = np.ones((len(rows), len(columns)), dtype=np.bool_) if plain is None else plain.copy()
    # A picture is a run of image tokens; its rows see each other in both directions.
    for run in np.split(image_rows, np.flatnonzero(np.diff(image_rows) != 1) + 1):
        if len(run):
            sees[run[0] : run[-1] + 1, run[0] : run[-1] + 1] = True
    if window is not None:
        # i - W < j, both counted along the path.
        sees &= columns > rows[:, None] - window
    return sees
