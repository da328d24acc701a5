"""A VLM in training: model, auxiliary heads of its vision tower, optimizer, running means and checkpoint.

Running means are of values that training steps measure, such as the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from vlm_spec_decode.models import tiny
from vlm_spec_decode.train import checkpoint as files
from vlm_spec_decode.train.config import TrainConfig
from vlm_spec_decode.train.hardware import Precision
from vlm_spec_decode.train.network import VisionHeads
from vlm_spec_decode.train.optimizer import MuonWithAdamW

_NEW_SHARE = 0.02


def updated(means: Mapping[str, float], new: Mapping[str, float]) -> dict[str, float]:
    """Return the means after one more step; what is measured for the first time begins with its value."""
    return {k: (1 - _NEW_SHARE) * means.get(k, v) + _NEW_SHARE * v for k, v in new.items()}


def rounded(means: Mapping[str, float]) -> dict[str, float]:
    """Return them as records and logs show them."""
    return {name: round(value, 4) for name, value in means.items()}


CPU = torch.device("cpu")


@dataclass(slots=True)
class TrainingState:
    """A model in training with everything that a checkpoint holds.

    `precision` is that of its steps so far, None before the first: a run that is resumed keeps it. `means`
    are the running means of what its steps measured, such as the loss.
    """

    model: LlavaForConditionalGeneration
    heads: VisionHeads
    optimizer: MuonWithAdamW
    eye_step: int = 0
    step: int = 0
    seconds: float = 0.0
    precision: Precision | None = None
    means: dict[str, float] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.heads.linear.weight.device

    def save(self, path: Path) -> None:
        """Write a checkpoint; the old one survives until the new one is complete. Raises ModelError."""
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counters": (self.eye_step, self.step, self.seconds),
            "precision": self.precision,
            "means": self.means,
        }
        files.save_checkpoint(state, path)

    def load(self, path: Path) -> None:
        """Take up a checkpoint, or the weights of a finished model's folder. Raises ModelError."""
        if path.is_dir():
            self._take(path)
            return
        state = files.load_checkpoint(path)
        with files.fitting(path):
            rows = len(self.model.lm_head.weight)
            grown = len(state["model"]["lm_head.weight"]) < rows
            if grown:
                _grow(state["model"], rows)
            self.model.load_state_dict(state["model"])
            self.heads.load_state_dict(state["heads"])
            if not grown:
                self.optimizer.load_state_dict(state["optimizer"])
            self.eye_step, self.step, self.seconds = state["counters"]
            self.precision = state.get("precision", "float32")
            self.means = state.get("means", {})

    def _take(self, folder: Path) -> None:
        """Begin from a finished model, whose steps do not count."""
        found = files.load_finished(LlavaForConditionalGeneration, folder)
        with files.fitting(folder):
            self.model.load_state_dict(found.state_dict())

    def take_eye(self, path: Path) -> None:
        """Take over the trained vision tower, and what reads it, of another model's checkpoint."""
        state = files.load_checkpoint(path)
        tower = "model.vision_tower."
        with files.fitting(path):
            found = {k.removeprefix(tower): v for k, v in state["model"].items() if k.startswith(tower)}
            self.model.model.vision_tower.load_state_dict(found)
            self.heads.load_state_dict(state["heads"])


def _grow(weights: dict[str, torch.Tensor], rows: int) -> None:
    """Give words that joined the vocabulary's end since a checkpoint the embedding of unknown words."""
    for name, tensor in weights.items():
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            new = tensor[tiny.UNK_ID].expand(rows - len(tensor), -1)
            weights[name] = torch.cat([tensor, new])


def new_trainee(config: TrainConfig, vocab_size: int, device: torch.device = CPU) -> TrainingState:
    """Build the model of the config's role on `device`, with random weights drawn from its seed."""
    torch.manual_seed(config.seed)
    make = tiny.target_config if config.role == "target" else tiny.draft_config
    model = LlavaForConditionalGeneration._from_config(make(vocab_size), attn_implementation="sdpa")
    heads = VisionHeads(model.config.vision_config.hidden_size).to(device)
    model.float().train().to(device)
    tower = (*model.model.vision_tower.named_parameters(), *heads.named_parameters())
    ids = {id(p) for _, p in tower}
    rest = [(name, p) for name, p in model.named_parameters() if id(p) not in ids]
    return TrainingState(model, heads, MuonWithAdamW({"eye": tower, "mouth": rest}, config.peak_rate))
