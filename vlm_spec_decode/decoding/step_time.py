"""What a step of a model and a pass over a few drafted tokens take here, before the first answer."""

from __future__ import annotations

import numpy as np

from vlm_spec_decode.core.images import rgb_image
from vlm_spec_decode.core.ports import Clock, Model
from vlm_spec_decode.core.types import Observation, Tokens

TIMES = 3


def pass_seconds(model: Model, clock: Clock, *sizes: int) -> tuple[float, ...]:
    """Return the seconds of a pass after a short prompt, over each of `sizes` drafted tokens; 0: of a step.

    The shortest of `TIMES` each: what else the machine does only adds.
    """
    pixels = np.full((64, 64, 3), 128, dtype=np.uint8)
    context = model.open(Observation(rgb_image(pixels), "go"))
    context.prefill()
    times: list[list[float]] = [[] for _ in sizes]
    prefix = Tokens()
    for _ in range(TIMES):
        for size, found in zip(sizes, times, strict=True):
            prefix += (0,)
            nodes = tuple(range(size))
            started_s = clock.now()
            context.choose(prefix, (nodes, nodes))
            found.append(clock.now() - started_s)
    context.close()
    return tuple(map(min, times))
