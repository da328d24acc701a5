"""The port of an engine: what runs a checkpoint, and the model that it returns.

An engine returns logits, and the rest of the package decides with them. What the cloud's worker needs of a
loaded model is the port `core.ports.Model`:

- begin an answer: `Model.open`, which returns the answer's `ModelContext`;
- run a pass over the ragged entries of many answers: `Model.score_batch`, one `ScoreRequest` (prefix, tree,
  listener) each, every one with its own logits or error;
- read early exits: `ScoreRequest.on_exit`, called while the pass runs; an engine without exits never calls it
  and leaves `ModelCard.exit_layers` empty;
- free: `ModelContext.forget` between passes, `close` at the end, `kv_bytes` for the budget.

A `LoadedModel` adds the tokenizer's codec; `LoadOptions` say how it is to be loaded. Imports no torch.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vlm_spec_decode.core.errors import ModelError
from vlm_spec_decode.core.ports import Model, ModelCard

if TYPE_CHECKING:
    from vlm_spec_decode.models.tokenizer import TokenizerCodec

DEFAULT_ENGINE = "torch_loop"
DTYPE_NAMES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("none", "int8", "bnb8", "bnb4")
PROMPTS = ("auto", "bare", "amounts", "actions")
_DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu|npu)(:[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a checkpoint.

    `device` is torch's name of one, or "auto" to spread the layers over all that there are (accelerate).
    `quantize` stores the language layers in fewer bits: int8 by torchao, bnb8 and bnb4 (NF4) by
    bitsandbytes; vision tower and head stay as they are. `exits` are depths in percent at which final norm
    and head are read early, for a checkpoint without trained exits. `base` names the language model where
    an original LLaVA folder holds only a projector, `tower` its vision tower in place of the one in its
    config. `prompt` says whether the action language is explained ("actions") or was trained ("bare", or
    "amounts": those that an instruction names are read first). `engine` names what runs the checkpoint;
    `models.spec.ModelSpec` checks that it is registered. An engine in a process of its own is told how many
    GPUs share each layer (`tensor_parallel`), and how much memory the caches of how many answers may take.
    """

    revision: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    quantize: str = "none"
    exits: tuple[int, ...] = ()
    base: str = ""
    tower: str = ""
    prompt: str = "auto"
    engine: str = DEFAULT_ENGINE
    tensor_parallel: int = 1
    kv_mib: int = 1024
    answers: int = 64

    def __post_init__(self) -> None:
        """Raise ModelError for a value that no loader knows."""
        _one_of("dtype", self.dtype, DTYPE_NAMES)
        _one_of("quantize", self.quantize, QUANTIZATIONS)
        _one_of("prompt", self.prompt, PROMPTS)
        if _DEVICE.fullmatch(self.device) is None:
            raise ModelError(f"unknown device {self.device!r} (known: cpu, cuda, cuda:0, mps, auto)")
        if not all(0 < percent < 100 for percent in self.exits):
            raise ModelError(f"exits {self.exits} are not depths between 0 and 100 percent")


class LoadedModel(Model):
    """A checkpoint that an engine has loaded. Contexts share the weights and nothing else."""

    def __init__(self, card: ModelCard, codec: TokenizerCodec) -> None:
        self._card = card
        self._codec = codec

    @property
    def card(self) -> ModelCard:
        """Identity, for the handshake."""
        return self._card

    @property
    def codec(self) -> TokenizerCodec:
        """Token ids to text and back; `stop_ids` end an answer."""
        return self._codec

    @property
    def is_ready(self) -> bool:
        """Whether it can answer now; an engine in a process of its own may be starting again."""
        return True

    @property
    def sees(self) -> bool:
        """Whether it has a vision tower; without one an observation's image is left out."""
        return False


class Engine(ABC):
    """One way to run checkpoints; `name` is what settings call it."""

    name: ClassVar[str]

    @abstractmethod
    def load(self, model_id: str, source: str | Path, options: LoadOptions) -> LoadedModel:
        """Load the checkpoint at `source`, a folder or Hub id, to be called `model_id`.

        Equal options give equal logits, up to rounding, whatever the engine. What the engine cannot do is
        refused, not ignored. Raises ModelError; whatever else loading raises becomes one in `load_model`.
        """


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ModelError(f"unknown {name} {value!r} (known: {', '.join(known)})")
