"""Training of target and draft: the eye first, then the mouth over the finished eye; resumes where it stops.

The tower is frozen once the mouth trains: at the full rate it forgets, and frozen it can be shared by target
and draft, which then see the same.

The learning rate is constant and falls linearly over the last part, so that a run can be cut short by
resuming it with fewer steps. Every draw comes from (seed, step), so a resumed run is the same run.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vlm_spec_decode.models import tiny
from vlm_spec_decode.models.failures import memory_named
from vlm_spec_decode.train import checkpoint as files
from vlm_spec_decode.train import instructions, teacher
from vlm_spec_decode.train.batches import Batch, Batcher
from vlm_spec_decode.train.config import TrainConfig
from vlm_spec_decode.train.frames import open_frames
from vlm_spec_decode.train.network import EyeHeads, answer_loss, distil_loss, image_features, logits_of

WARM_UP = 200
WHOLE_METRES = ("1", "2", "3", "4")
"""As actions carried out are told; 0 and 5 are angles, too."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer of the shipped models."""
    return tiny.build_tokenizer((*teacher.words(), *instructions.words(), ":", *WHOLE_METRES))


@dataclass(slots=True)
class Trainee:
    """A model in training with everything that a checkpoint holds."""

    model: LlavaForConditionalGeneration
    heads: EyeHeads
    optimizer: torch.optim.Optimizer
    eye_step: int = 0
    step: int = 0
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        """Write a checkpoint; the old one survives until the new one is complete. Raises ModelError."""
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counters": (self.eye_step, self.step, self.seconds),
        }
        files.save_checkpoint(state, path)

    def load(self, path: Path) -> None:
        """Take up a checkpoint. Raises ModelError."""
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


def new_trainee(config: TrainConfig, vocab_size: int) -> Trainee:
    """Build the model of the config's role, with random weights drawn from its seed."""
    torch.manual_seed(config.seed)
    make = tiny.target_config if config.role == "target" else tiny.draft_config
    model = LlavaForConditionalGeneration._from_config(make(vocab_size), attn_implementation="sdpa")
    model.float().train()
    heads = EyeHeads(model.config.vision_config.hidden_size)
    tower = list(model.model.vision_tower.parameters()) + list(heads.parameters())
    ids = {id(p) for p in tower}
    rest = [p for p in model.parameters() if id(p) not in ids]
    groups = [{"params": tower, "name": "eye"}, {"params": rest, "name": "mouth"}]
    optimizer = torch.optim.AdamW(groups, lr=config.peak_rate, betas=(0.9, 0.95), weight_decay=0.05)
    return Trainee(model, heads, optimizer)


def run_train(config: TrainConfig) -> dict[str, Any]:
    """Train one model, from its checkpoint if there is one, and export it. Returns the training record.

    Raises ConfigError without frames, ModelError for a checkpoint that cannot be written or read.
    """
    torch.set_num_threads(config.threads)
    tok = tokenizer()
    frames = open_frames(config.data)
    batcher = Batcher(frames, tok, config.dialogues)
    trainee = new_trainee(config, len(tok))
    config.out.mkdir(parents=True, exist_ok=True)
    checkpoint = config.out / "checkpoint.pt"
    if checkpoint.exists():
        trainee.load(checkpoint)
    elif config.start:
        trainee.load(config.start)
    if config.eye and not trainee.step:
        trainee.take_eye(config.eye)
    with memory_named(files.MEMORY_ADVICE):
        _run(config, trainee, batcher, checkpoint)
    record: dict[str, Any] = {"config": {k: str(v) for k, v in asdict(config).items()}, "data": frames.digest}
    record |= {"eye_steps": trainee.eye_step, "steps": trainee.step, "seconds": round(trainee.seconds)}
    export(config.out, trainee.model, tok, record)
    return record


def export(
    folder: Path, model: LlavaForConditionalGeneration, tok: PreTrainedTokenizerFast, record: dict[str, Any]
) -> None:
    """Write the folder that `from_pretrained` reads, with the training record beside the weights.

    Weights are stored in half precision because they ship with the package; the config has them loaded as
    float32 again.
    """
    with files.exporting(folder) as made:
        copy.deepcopy(model).half().save_pretrained(str(made))
        config = copy.deepcopy(model.config)
        for part in (config, config.text_config, config.vision_config):
            part.dtype = torch.float32
        config.architectures = [type(model).__name__]
        config.save_pretrained(str(made))
        tiny.save_folder(made, tiny.build_processor(tok))
        (made / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def _run(config: TrainConfig, trainee: Trainee, batcher: Batcher, checkpoint: Path) -> None:
    guide = load_guide(config.distil) if config.distil else None
    log = (config.out / "log.jsonl").open("a")
    started_s, before_s = time.monotonic(), trainee.seconds
    figures: dict[str, float] = {}
    bar = tqdm(
        _steps(config, trainee),
        total=config.eye_steps + config.steps,
        initial=trainee.eye_step + trainee.step,
        desc=config.role,
        mininterval=5,
    )
    for is_eye, number in bar:
        rng = np.random.default_rng([config.seed, int(is_eye), number])
        batch = (
            batcher.draw(rng, 4 * config.batch, dialogues=1) if is_eye else batcher.draw(rng, config.batch)
        )
        _set_rates(config, trainee.optimizer, is_eye, number)
        new = _eye_step(trainee, batch) if is_eye else _step(trainee, batch, batcher, guide)
        figures = {k: 0.98 * figures.get(k, v) + 0.02 * v for k, v in new.items()}
        trainee.seconds = before_s + time.monotonic() - started_s
        if number % config.log_every == 0:
            bar.set_postfix({k: f"{v:.3f}" for k, v in figures.items()}, refresh=False)
            row = {"eye": is_eye, "step": number, "s": round(trainee.seconds)}
            log.write(json.dumps({**row, **{k: round(v, 4) for k, v in figures.items()}}) + "\n")
            log.flush()
        if number % config.checkpoint_every == 0:
            trainee.save(checkpoint)
    trainee.save(checkpoint)
    log.close()


def _steps(config: TrainConfig, trainee: Trainee) -> Iterator[tuple[bool, int]]:
    while trainee.eye_step < config.eye_steps:
        trainee.eye_step += 1
        yield True, trainee.eye_step
    last = config.steps if config.stop_after is None else config.stop_after
    while trainee.step < last:
        trainee.step += 1
        yield False, trainee.step


def _set_rates(config: TrainConfig, optimizer: torch.optim.Optimizer, is_eye: bool, number: int) -> None:
    total = config.eye_steps if is_eye else config.steps
    left = (total - number) / (config.decay_share * total)
    rate = config.peak_rate * min(1.0, number / WARM_UP, max(0.02, left))
    for group in optimizer.param_groups:
        group["lr"] = rate * float(is_eye == (group["name"] == "eye"))


def _eye_step(trainee: Trainee, batch: Batch) -> dict[str, float]:
    loss = trainee.heads.loss(image_features(trainee.model, batch.pixels), batch.patch_labels)
    _update(trainee, loss)
    return {"eye_loss": loss.item()}


def load_guide(folder: Path) -> LlavaForConditionalGeneration:
    """Load the target that a draft learns from."""
    guide = LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa")
    return guide.eval().requires_grad_(False)


def _step(
    trainee: Trainee, batch: Batch, batcher: Batcher, guide: LlavaForConditionalGeneration | None
) -> dict[str, float]:
    with torch.no_grad():
        features = image_features(trainee.model, batch.pixels)
    logits = logits_of(trainee.model, features, batch)
    if guide is None:
        loss, labels = answer_loss(logits, batch), batch.labels
    else:
        with torch.inference_mode():
            wanted = logits_of(guide, image_features(guide, batch.pixels), batch)
        loss = distil_loss(logits, wanted.clone(), batch)
        labels = wanted.argmax(-1)
    _update(trainee, loss)
    right = (logits.argmax(-1) == labels).numpy()
    telling = batcher.telling[labels.numpy()]
    return {
        "loss": loss.item(),
        "telling": right[telling].mean(),
        "rest": right[~telling].mean(),
    }


def _update(trainee: Trainee, loss: torch.Tensor) -> None:
    trainee.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(trainee.model.parameters(), 1.0)
    trainee.optimizer.step()
