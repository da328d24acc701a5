"""What a step of a model and a pass over a few drafted tokens take here, before the first answer."""

from __future__ import annotations

import numpy as np

from vlm_spec_decode.core.images import rgb_image
from vlm_spec_decode.core.ports import Clock, Model
from vlm_spec_decode.core.types import Observation, Tokens

TOKENS = 4
TIMES = 3


def step_and_pass_s(model: Model, clock: Clock) -> tuple[float, float]:
    """Return the seconds of a step after a short prompt, and of a pass over `TOKENS` drafted tokens.

    The shortest of `TIMES` each: what else the machine does only adds.
    """
    pixels = np.full((64, 64, 3), 128, dtype=np.uint8)
    context = model.open(Observation(rgb_image(pixels), "go"))
    context.prefill()
    steps, passes, prefix = list[float](), list[float](), Tokens()
    for _ in range(TIMES):
        for drafted, times in (((), steps), (tuple(range(TOKENS)), passes)):
            prefix += (0,)
            started_s = clock.now()
            context.choose(prefix, (drafted, tuple(range(len(drafted)))))
            times.append(clock.now() - started_s)
    context.close()
    return min(steps), min(passes)
