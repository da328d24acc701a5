"""A VLM in training: model, auxiliary heads, optimizer, running means, and its checkpoints on the disk.

Running means are of values that training steps measure, such as the loss. A checkpoint is complete or not
there, and whatever stands in its way is an error that says so.

The optimizer is Muon for the matrices of the layers, AdamW for everything else. Muon (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/) makes each matrix's step orthogonal, so that a few large
directions do not suppress the others. On these models it reaches the loss of AdamW in two thirds of the
steps. torch.optim.Muon iterates in bfloat16, which a CPU without instructions for it does fifteen times more
slowly than this does in float32, for all matrices of a shape at once.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vlm_spec_decode.core.errors import ModelError
from vlm_spec_decode.models import tiny
from vlm_spec_decode.models.checkpoint import TRANSFORMERS_LOCK, load_tokenizer, named, read_config
from vlm_spec_decode.train.batches import VisionHeads
from vlm_spec_decode.train.config import TrainConfig
from vlm_spec_decode.train.hardware import ATTENTION, Precision

_NEW_SHARE = 0.02

WORD_ROWS = ("embed_tokens.weight", "lm_head.weight")
"""Endings of the names of weights that have a row for each token."""


def updated(means: Mapping[str, float], new: Mapping[str, float]) -> dict[str, float]:
    """Return the means after one more step; a new key begins with its value."""
    # Exponential running mean: m <- (1 - a) m + a x.
    return {k: (1 - _NEW_SHARE) * means.get(k, v) + _NEW_SHARE * v for k, v in new.items()}


def rounded(means: Mapping[str, float]) -> dict[str, float]:
    """Return rounded means, for records and logs."""
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
    vision_step: int = 0
    step: int = 0
    seconds: float = 0.0
    precision: Precision | None = None
    means: dict[str, float] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.heads.linear.weight.device

    def save(self, path: Path) -> None:
        """Write a checkpoint; the old one survives until the new one is complete. Raises ModelError."""
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counters": (self.vision_step, self.step, self.seconds),
            "precision": self.precision,
            "means": self.means,
        }
        save_checkpoint(state, path)

    def load(self, path: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> None:
        """Load a checkpoint, or the weights of a finished model's folder. Raises ModelError.

        A finished model may have had other words than `tokenizer`, which is that of this training.
        """
        if path.is_dir():
            self._load_finished(path, tokenizer)
            return
        state = load_checkpoint(path)
        with fitting(path):
            rows = len(self.model.lm_head.weight)
            grown = len(state["model"]["lm_head.weight"]) < rows
            if grown:
                _grow(state["model"], rows)
            self.model.load_state_dict(state["model"])
            self.heads.load_state_dict(state["heads"])
            # Moments of the optimizer have the old vocabulary's shape; they begin anew with a larger one.
            if not grown:
                self.optimizer.load_state_dict(state["optimizer"])
            self.vision_step, self.step, self.seconds = state["counters"]
            self.precision = state.get("precision", "float32")
            self.means = state.get("means", {})

    def _load_finished(self, folder: Path, tokenizer: PreTrainedTokenizerFast | None) -> None:
        """Load a finished model's weights; its steps do not count."""
        weights = load_finished(LlavaForConditionalGeneration, folder).state_dict()
        before = load_tokenizer(folder)
        if tokenizer is not None and before.get_vocab() != tokenizer.get_vocab():
            # Input and output embeddings are tied: one matrix.
            rows = reworded(weights["lm_head.weight"], before, tokenizer)
            weights |= {name: rows for name in weights if name.endswith(WORD_ROWS)}
        with fitting(folder):
            self.model.load_state_dict(weights)

    def load_vision_tower(self, path: Path) -> None:
        """Load the trained vision tower and its heads from another model's checkpoint.

        A finished model's folder has no heads: they stay as they are. Raises ModelError.
        """
        if path.is_dir():
            found = load_finished(LlavaForConditionalGeneration, path).model.vision_tower.state_dict()
            with fitting(path):
                self.model.model.vision_tower.load_state_dict(found)
            return
        state = load_checkpoint(path)
        tower = "model.vision_tower."
        with fitting(path):
            found = {k.removeprefix(tower): v for k, v in state["model"].items() if k.startswith(tower)}
            self.model.model.vision_tower.load_state_dict(found)
            self.heads.load_state_dict(state["heads"])


def _grow(weights: dict[str, torch.Tensor], rows: int) -> None:
    """Give words added to the vocabulary since a checkpoint the embedding of unknown words."""
    for name, tensor in weights.items():
        if name.endswith(WORD_ROWS):
            new = tensor[tiny.UNK_ID].expand(rows - len(tensor), -1)
            weights[name] = torch.cat([tensor, new])


def reworded(
    rows: torch.Tensor, before: PreTrainedTokenizerFast, tokenizer: PreTrainedTokenizerFast
) -> torch.Tensor:
    """Return a tokenizer's embeddings [new ids, size], made from those [old ids, size] of another one.

    A token is the mean of the words that the old tokenizer reads in its text; one in which it reads none is
    drawn at random, spread as the known ones are.
    """
    spread, middle = torch.std_mean(rows, dim=0)
    new = middle + spread * torch.randn(len(tokenizer), rows.shape[1])
    for token in range(len(tokenizer)):
        ids = before(tokenizer.decode([token]), add_special_tokens=False)["input_ids"]
        known = [i for i in ids if i != tiny.UNK_ID]
        if known:
            new[token] = rows[known].mean(dim=0)
    # The marks of sequence and image have the same ids in every tokenizer of the tiny models.
    marks = len(tiny.SPECIALS)
    new[:marks] = rows[:marks]
    return new


def new_training_state(config: TrainConfig, vocab_size: int, device: torch.device = CPU) -> TrainingState:
    """Build the model of the config's role on `device`, with random weights drawn from its seed."""
    torch.manual_seed(config.seed)
    make = tiny.target_config if config.role == "target" else tiny.draft_config
    model = LlavaForConditionalGeneration._from_config(make(vocab_size), attn_implementation=ATTENTION)
    heads = VisionHeads(model.config.vision_config.hidden_size).to(device)
    model.float().train().to(device)
    tower = (*model.model.vision_tower.named_parameters(), *heads.named_parameters())
    ids = {id(p) for _, p in tower}
    rest = [(name, p) for name, p in model.named_parameters() if id(p) not in ids]
    return TrainingState(model, heads, MuonWithAdamW({"eye": tower, "mouth": rest}, config.peak_rate))


Named: TypeAlias = Iterable[tuple[str, torch.nn.Parameter]]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: steep at 0, and singular values end between 0.7 and 1.2."""

ITERATIONS = 5
RMS = 0.2
"""Of a step's entries, as AdamW's have it, so that both share rate and decay (arXiv 2502.16982, 2.2)."""

WEIGHT_DECAY = 0.05

OF_ADAM = 2.5
"""A matrix's rate over that of the rest, measured on the vision tower's first 600 steps."""


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are made orthogonal, for parameters of two dimensions."""

    def __init__(self, groups: Iterable[dict[str, Any]], rate: float, momentum: float = 0.95) -> None:
        super().__init__(groups, {"lr": rate, "momentum": momentum, "weight_decay": WEIGHT_DECAY})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure: nothing here looks for a step's length
        """Make one step for all parameters with gradients."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[torch.Tensor]] = defaultdict(list)
            for weights in group["params"]:
                if weights.grad is not None:
                    by_shape[min(weights.shape), max(weights.shape)].append(weights)
            # Matrices of one shape, lying or standing, are made orthogonal as one batch.
            for (_, longer), matrices in by_shape.items():
                means = [_wide(self._momentum(w, group["momentum"])) for w in matrices]
                steps = orthogonal(torch.stack(means))
                for weights, step in zip(matrices, steps, strict=True):
                    weights.mul_(1 - group["lr"] * group["weight_decay"])
                    is_tall = weights.shape[0] > weights.shape[1]
                    # An orthogonal m x n matrix has entries of root mean square 1 / sqrt(max(m, n)).
                    weights.add_(step.T if is_tall else step, alpha=-group["lr"] * RMS * longer**0.5)

    def _momentum(self, weights: torch.Tensor, share: float) -> torch.Tensor:
        """Return Nesterov's: the running mean of the gradients as it will be."""
        state, gradient = self.state[weights], weights.grad
        assert gradient is not None
        if not state:
            state["mean"] = torch.zeros_like(weights)
        state["mean"].lerp_(gradient, 1 - share)
        nesterov: torch.Tensor = gradient.lerp(state["mean"], share)
        return nesterov


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Return the nearest matrices [N, m, n], m <= n, with singular values of about 1."""
    a, b, c = COEFFICIENTS
    # The Frobenius norm bounds the largest singular value, so all lie in [0, 1] at the start.
    found: torch.Tensor = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        # X <- a X + (b A + c A A) X with A = X Xᵀ: each singular value s becomes a s + b s³ + c s⁵.
        square = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(square, square, square, beta=b, alpha=c), found, beta=a)
    return found


def _wide(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.T if matrix.shape[0] > matrix.shape[1] else matrix


class MuonWithAdamW:
    """Both as one optimizer. Each of `parts`, by name, has a group for its matrices and one for the rest.

    A group's `of_peak` says how its rate relates to `rate`, that of AdamW.
    """

    def __init__(self, parts: dict[str, Named], rate: float) -> None:
        split: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for part, parameters in parts.items():
            found: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
            for name, weights in parameters:
                # Embeddings and head are matrices too, but their rows are separate words: AdamW.
                found[weights.ndim == 2 and "layers." in name].append(weights)
            for is_matrix, weights_of in found.items():
                about = {"name": part, "of_peak": OF_ADAM if is_matrix else 1.0}
                split[is_matrix].append({"params": weights_of, **about})
        self._both: dict[str, torch.optim.Optimizer] = {
            "muon": Muon(split[True], rate),
            "adamw": torch.optim.AdamW(split[False], rate, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY),
        }

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both."""
        return [group for optimizer in self._both.values() for group in optimizer.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        for optimizer in self._both.values():
            optimizer.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """Make one step for all parameters with gradients."""
        for optimizer in self._both.values():
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's part of a checkpoint."""
        return {name: optimizer.state_dict() for name, optimizer in self._both.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a checkpoint's state. Raises KeyError for that of another kind of optimizer."""
        for name, optimizer in self._both.items():
            optimizer.load_state_dict(state[name])


MEMORY_ADVICE = "a smaller --batch; the last checkpoint is kept"


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write `state`; whatever happens on the way, the old checkpoint survives until the new one is complete.

    Raises ModelError naming the cause, such as a full disk; the half of a file is removed then.
    """
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            # Flushed to the disk before it replaces the old one, or a power failure could lose both.
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        kept = "; the one before it is as it was" if path.exists() else ""
        raise ModelError(f"cannot write checkpoint {path}: {_cause(error)}{kept}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return what was saved. Raises ModelError if the file is missing, truncated or no checkpoint."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError as error:
        raise ModelError(f"there is no checkpoint {path}") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, UnpicklingError) as error:
        raise ModelError(f"{path} is truncated or no checkpoint; remove it to start anew") from error
    if not isinstance(state, dict) or "model" not in state:
        raise ModelError(f"{path} holds no training; remove it to start anew")
    return state


def load_finished(family: Any, folder: Path) -> Any:
    """Return a finished model of one of Transformers' classes, in float32.

    Raises ModelError if it is missing, broken, or of another architecture: Transformers would only warn of
    that, and begin with random weights.
    """
    with named(str(folder)):
        found, wanted = read_config(folder).get("model_type"), family.config_class.model_type
        if found != wanted:
            raise ModelError(f"its architecture is {found!r}, where {wanted!r} is needed")
        with TRANSFORMERS_LOCK:
            return family.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Turn errors of loading another model's checkpoint into a ModelError that names the file."""
    try:
        yield
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise ModelError(f"{path} is the checkpoint of another model ({_cause(error)})") from error


def _cause(error: BaseException) -> str:
    """Return the first line of an error, or of the system's error behind it."""
    inner = error.__context__
    if isinstance(inner, OSError) and not isinstance(error, OSError):
        error = inner
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def exporting(folder: Path) -> Iterator[Path]:
    """Yield a folder to write a model to; its files are moved to `folder` when all are complete.

    Raises ModelError if they cannot be written; `folder` is then as it was.
    """
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in sorted(partial.iterdir()):
            path.chmod(0o644)
            path.replace(folder / path.name)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"cannot write the model to {folder}: {_cause(error)}; run it again to go on"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
