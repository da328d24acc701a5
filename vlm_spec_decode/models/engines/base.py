"""The port of an engine: what runs a checkpoint, and the model that it returns.

An engine returns logits, and the rest of the package decides with them. What the cloud's worker needs of a
loaded model is the port `core.ports.Model`:

- begin an answer: `Model.open`, which returns the answer's `ModelContext`;
- run a pass over the ragged entries of many answers: `Model.score_batch`, one `ScoreRequest` (prefix, tree,
  listener) each, every one with its own logits or error;
- read early exits: `ScoreRequest.on_exit`, called while the pass runs; an engine without exits never calls it
  and leaves `ModelCard.exit_layers` empty;
- free: `ModelContext.forget` between passes, `close` at the end, `kv_bytes` for the budget.

A `LoadedModel` adds the tokenizer's codec. Imports no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vlm_spec_decode.core.ports import Model

if TYPE_CHECKING:
    from vlm_spec_decode.models.spec import LoadOptions
    from vlm_spec_decode.models.tokenizer import TokenizerCodec


class LoadedModel(Model):
    """A checkpoint that an engine has loaded. Contexts share the weights and nothing else."""

    @property
    @abstractmethod
    def codec(self) -> TokenizerCodec:
        """Token ids to text and back; `stop_ids` end an answer."""

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
