"""Training of target and draft: first the vision tower, then the language part on the frozen tower.

Training can be resumed. The tower is frozen while the language part trains: at the full rate it would lose
its features, and frozen it can be shared by target and draft, which then have the same features.

The learning rate is constant and falls linearly over the last part, so that a run can be cut short by
resuming it with fewer steps. Every draw comes from (seed, step), so a resumed run is the
same run.

A deep language part begins shallow (`LayerStack`). What a model has to learn about its language it learns in
four layers as well as in twelve, in a third of the time. Layers that join are copies of those below, whose
outputs are nothing at first, so the model goes on from where it was (stacking: arXiv 2405.15319; growth that
preserves what is computed: arXiv 2305.02869).

A finished model's folder has the vision tower and not its auxiliary heads. Random heads would send their
first gradients into the tower and destroy its features. So the heads are trained first, while the tower is
frozen.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.models import tiny
from vlm_spec_decode.models.hardware import memory_named
from vlm_spec_decode.train import instructions, teacher
from vlm_spec_decode.train.batches import (
    Batch,
    Batcher,
    Views,
    answer_loss,
    distil_loss,
    image_features,
    logits_of,
)
from vlm_spec_decode.train.config import Growth, TrainConfig
from vlm_spec_decode.train.frames import open_frames
from vlm_spec_decode.train.hardware import Hardware, WorkerGroup, choose, pick_device, run_in_processes
from vlm_spec_decode.train.training_state import (
    MEMORY_ADVICE,
    MuonWithAdamW,
    TrainingState,
    exporting,
    load_finished,
    new_training_state,
    rounded,
    updated,
)

WARM_UP = 200
WHOLE_METRES = ("1", "2", "3", "4")
"""As actions carried out are told; 0 and 5 are angles, too."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer of the shipped models."""
    return tiny.build_tokenizer((*teacher.words(), *instructions.words(), ":", *WHOLE_METRES))


def run_train(config: TrainConfig) -> dict[str, Any]:
    """Train one model, from its checkpoint if there is one, and export it. Returns the training record.

    Raises ConfigError without frames or for a device that is not here, ModelError for a checkpoint that
    cannot be written or read, or if one of several processes ends.
    """
    if config.processes == 1:
        return train(config, WorkerGroup())
    if pick_device(config.device).type != "cpu":
        raise ConfigError(f"{config.processes} processes share the cores of a CPU: --device cpu")
    return run_in_processes(partial(train, config), config.processes)


def train(config: TrainConfig, crew: WorkerGroup) -> dict[str, Any]:
    """Train as one of a crew (see `run_train`); the leader alone measures, logs, saves and exports."""
    torch.set_num_threads(config.threads)
    if config.start and config.start.is_dir():
        config = replace(config, growth=())  # a finished model has all its layers
    tok = tokenizer()
    frames = open_frames(config.data)
    if frames.dialogues and config.eye_steps:
        raise ConfigError(
            f"{config.data} holds recorded walks, which teach no vision tower: --vision-steps 0"
        )
    batcher = Batcher(frames, tok, config.dialogues)
    trainee = new_training_state(config, len(tok), pick_device(config.device))
    config.out.mkdir(parents=True, exist_ok=True)
    checkpoint = config.out / "checkpoint.pt"
    needs_heads = False
    if checkpoint.exists():
        trainee.load(checkpoint)
    elif config.start:
        trainee.load(config.start)
        needs_heads = config.start.is_dir() and config.eye_steps > 0 and config.eye is None
    if config.eye and not trainee.step:
        trainee.load_vision_tower(config.eye)
    depth = LayerStack(trainee.model)
    if config.growth and trainee.step:
        depth.resume()
    elif config.growth:
        depth.begin(config.growth[0][1])
    with memory_named(MEMORY_ADVICE):
        hardware = _hardware(config, trainee, batcher, crew)
        if needs_heads:
            fit_heads(trainee, batcher, 4 * config.batch, config.seed, crew)
        _run(config, trainee, batcher, checkpoint, hardware, crew)
    record: dict[str, Any] = {"config": {k: str(v) for k, v in asdict(config).items()}, "data": frames.digest}
    record |= {"eye_steps": trainee.vision_step, "steps": trainee.step, "seconds": round(trainee.seconds)}
    record |= hardware.record()
    record["last_running_means"] = rounded(trainee.means)
    if crew.is_leader:
        depth.use_all()
        export(config.out, trainee.model, tok, record)
    return record


def export(
    folder: Path, model: LlavaForConditionalGeneration, tok: PreTrainedTokenizerFast, record: dict[str, Any]
) -> None:
    """Write the folder that `from_pretrained` reads, with the training record beside the weights.

    Weights are stored in half precision because they ship with the package; the config has them loaded as
    float32 again.
    """
    with exporting(folder) as made:
        copy.deepcopy(model).half().save_pretrained(str(made))
        config = copy.deepcopy(model.config)
        for part in (config, config.text_config, config.vision_config):
            part.dtype = torch.float32
        config.architectures = [type(model).__name__]
        config.save_pretrained(str(made))
        tiny.save_folder(made, tiny.build_processor(tok))
        (made / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def _hardware(config: TrainConfig, trainee: TrainingState, batcher: Batcher, crew: WorkerGroup) -> Hardware:
    """Return what the leader has chosen: one run has one number format."""
    device = trainee.device
    if crew.is_leader:
        hardware = choose(trainee, config.precision, device, lambda: _probe(config, trainee, batcher))
        crew.broadcast(hardware.precision)
        return hardware
    trainee.precision = "bfloat16" if crew.broadcast("") == "bfloat16" else "float32"
    return Hardware(device, trainee.precision)


def _probe(config: TrainConfig, trainee: TrainingState, batcher: Batcher) -> Callable[[], torch.Tensor]:
    """Return the loss of one batch, to be timed."""
    batch = batcher.draw(WorkerGroup().rng(config.seed, 0x9EC), config.batch).to(trainee.device)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            features = image_features(trainee.model, batch.pixels)
        return answer_loss(logits_of(trainee.model, features, batch), batch)

    return forward


def _run(
    config: TrainConfig,
    trainee: TrainingState,
    batcher: Batcher,
    checkpoint: Path,
    hardware: Hardware,
    crew: WorkerGroup,
) -> None:
    depth = LayerStack(trainee.model)
    guide = load_guide(config.distil, trainee.device) if config.distil else None
    log = (config.out / "log.jsonl").open("a")
    started_s, before_s = time.monotonic(), trainee.seconds
    bar = tqdm(
        _steps(config, trainee),
        total=config.eye_steps + config.steps,
        initial=trainee.vision_step + trainee.step,
        desc=config.role,
        mininterval=5,
        disable=not crew.is_leader,
    )
    for is_eye, number in bar:
        rng = crew.rng(config.seed, int(is_eye), number)
        _set_rates(config, trainee.optimizer, is_eye, number)
        if is_eye:
            new = _vision_step(
                trainee, batcher.views(rng, 4 * config.batch).to(trainee.device), hardware, crew
            )
        else:
            depth.grow(layers_at(config.growth, number, config.steps))
            batch = batcher.draw(rng, config.batch).to(trainee.device)
            new = _step(trainee, batch, batcher, guide, hardware, crew)
        trainee.means = updated(trainee.means, new)
        trainee.seconds = before_s + time.monotonic() - started_s
        if not crew.is_leader:
            continue
        if number % config.log_every == 0:
            bar.set_postfix({k: f"{v:.3f}" for k, v in trainee.means.items()}, refresh=False)
            row = {"eye": is_eye, "step": number, "s": round(trainee.seconds)}
            log.write(json.dumps(row | rounded(trainee.means)) + "\n")
            log.flush()
        if number % config.checkpoint_every == 0:
            trainee.save(checkpoint)
    if crew.is_leader:
        trainee.save(checkpoint)
    log.close()


def _steps(config: TrainConfig, trainee: TrainingState) -> Iterator[tuple[bool, int]]:
    while trainee.vision_step < config.eye_steps:
        trainee.vision_step += 1
        yield True, trainee.vision_step
    last = config.steps if config.stop_after is None else config.stop_after
    while trainee.step < last:
        trainee.step += 1
        yield False, trainee.step


def _set_rates(config: TrainConfig, optimizer: MuonWithAdamW, is_eye: bool, number: int) -> None:
    total = config.eye_steps if is_eye else config.steps
    left = (total - number) / (config.decay_share * total)
    rate = config.peak_rate * min(1.0, number / WARM_UP, max(0.02, left))
    for group in optimizer.param_groups:
        group["lr"] = rate * group["of_peak"] * float(is_eye == (group["name"] == "eye"))


def _vision_step(
    trainee: TrainingState, views: Views, hardware: Hardware, crew: WorkerGroup
) -> dict[str, float]:
    with hardware.autocast():
        loss = trainee.heads.loss(image_features(trainee.model, views.pixels), views.patch_labels)
    _update(trainee, loss, crew)
    return {"eye_loss": loss.item()}


def load_guide(folder: Path, device: torch.device) -> LlavaForConditionalGeneration:
    """Load the target that a draft learns from. Raises ModelError."""
    guide: LlavaForConditionalGeneration = load_finished(LlavaForConditionalGeneration, folder)
    return guide.to(device).eval().requires_grad_(False)


def _step(
    trainee: TrainingState,
    batch: Batch,
    batcher: Batcher,
    guide: LlavaForConditionalGeneration | None,
    hardware: Hardware,
    crew: WorkerGroup,
) -> dict[str, float]:
    with hardware.autocast():
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
    _update(trainee, loss, crew)
    right = (logits.argmax(-1) == labels).cpu().numpy()
    telling = batcher.informative[labels.cpu().numpy()]
    return {
        "loss": loss.item(),
        "telling": float(right[telling].mean()),
        "rest": float(right[~telling].mean()),
    }


def _update(trainee: TrainingState, loss: torch.Tensor, crew: WorkerGroup) -> None:
    trainee.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    crew.average((*trainee.model.parameters(), *trainee.heads.parameters()))
    torch.nn.utils.clip_grad_norm_(trainee.model.parameters(), 1.0)
    trainee.optimizer.step()


def layers_at(growth: Growth, step: int, steps: int) -> int | None:
    """Return how many layers the `step`th of `steps` trains, counted from 1; None for all there are."""
    if not growth:
        return None
    return [layers for share, layers in growth if step > share * steps][-1]


class LayerStack:
    """How many layers of a model are in use. The others lie idle: they pass everything on."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        self._language = model.model.language_model
        self._layers: Sequence[nn.Module] = self._language.layers

    @property
    def used(self) -> int:
        """Layers in use, from below."""
        return int(self._language.config.num_hidden_layers)

    def begin(self, count: int) -> None:
        """Use the first `count` layers of a new model, and silence the rest."""
        for layer in self._layers[count:]:
            _silence(layer)
        self._use(count)

    def resume(self) -> None:
        """Use the layers that say something: whatever the plan says now, what was trained is kept."""
        self._use(sum(bool(layer.mlp.down_proj.weight.any()) for layer in self._layers))  # type: ignore[union-attr, operator]

    def use_all(self) -> None:
        """Have idle layers count as layers again; what the model says stays the same."""
        self._use(len(self._layers))

    def grow(self, count: int | None) -> None:
        """Add layers until there are `count`, each of them a silent copy of one below. None adds none."""
        if count is None or count <= self.used:
            return
        below = self._layers[: self.used]
        for layer, copied in zip(self._layers[self.used : count], cycle(below)):
            layer.load_state_dict(copied.state_dict())
            _silence(layer)
        self._use(count)

    def _use(self, count: int) -> None:
        self._language.config.num_hidden_layers = count


@torch.no_grad()
def _silence(layer: nn.Module) -> None:
    """Let a layer of a transformer add nothing to what it is given."""
    layer.self_attn.o_proj.weight.zero_()  # type: ignore[union-attr, operator]
    layer.mlp.down_proj.weight.zero_()  # type: ignore[union-attr, operator]


STEPS = 300
RATE = 1e-2
"""Constant, and falling linearly to nothing over the second half."""


def fit_heads(
    trainee: TrainingState, batcher: Batcher, images: int, seed: int, crew: WorkerGroup, steps: int = STEPS
) -> float:
    """Train the heads alone for `steps` of `images` each, and return the last loss. The eye stays."""
    optimizer = torch.optim.AdamW(trainee.heads.parameters(), RATE)
    loss = torch.zeros(())
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, 2 * (steps - step) / steps)
        views = batcher.views(crew.rng(seed, 0x4EAD, step), images).to(trainee.device)
        with torch.no_grad():
            features = image_features(trainee.model, views.pixels)
        loss = trainee.heads.loss(features, views.patch_labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        crew.average(trainee.heads.parameters())
        optimizer.step()
    return loss.item()
