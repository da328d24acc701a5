"""Training of target and draft: first the vision tower, then the language part on the frozen tower.

Training can be resumed. The tower is frozen while the language part trains: at the full rate it would lose
its features, and frozen it can be shared by target and draft, which then have the same features.

The learning rate is constant and falls linearly over the last part, so that a run can be cut short by
resuming it with fewer steps. Every draw comes from (seed, step), so a resumed run is the
same run.

A deep language part begins shallow (`LayerStack`): four layers learn the language as well as twelve, in a
third of the time. Added layers are copies of those below with zero output, so the model computes the same
function (stacking: arXiv 2405.15319; growth that preserves the function: arXiv 2305.02869).

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
from vlm_spec_decode.models.subword import read_subword_tokenizer
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
from vlm_spec_decode.train.spoken_dialogues import drawer
from vlm_spec_decode.train.teacher import AnswerStyle
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
"""Whole metres, as executed actions are written; 0 and 5 also occur as angles."""


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


def train(config: TrainConfig, workers: WorkerGroup) -> dict[str, Any]:
    """Train as one process of a group (see `run_train`); only the leader logs, saves and exports."""
    torch.set_num_threads(config.threads)
    if config.start and config.start.is_dir():
        config = replace(config, growth=())  # a finished model has all its layers
    tok = read_subword_tokenizer(config.tokenizer) if config.tokenizer else tokenizer()
    frames = open_frames(config.data)
    if frames.dialogues and config.eye_steps:
        raise ConfigError(
            f"{config.data} holds recorded walks, which teach no vision tower: --vision-steps 0"
        )
    draw = drawer(tok, AnswerStyle(config.description, config.max_step_m))
    batcher = Batcher(frames, tok, config.dialogues, draw)
    state = new_training_state(config, len(tok), pick_device(config.device))
    config.out.mkdir(parents=True, exist_ok=True)
    checkpoint = config.out / "checkpoint.pt"
    needs_heads = False
    if checkpoint.exists():
        state.load(checkpoint)
    elif config.start:
        state.load(config.start, tok)
        needs_heads = config.start.is_dir() and config.eye is None
    if config.eye and not (state.step or state.vision_step):
        state.load_vision_tower(config.eye)
        needs_heads = config.eye.is_dir()
    depth = LayerStack(state.model)
    if config.growth and state.step:
        depth.resume()
    elif config.growth:
        depth.begin(config.growth[0][1])
    with memory_named(MEMORY_ADVICE):
        hardware = _hardware(config, state, batcher, workers)
        if needs_heads and config.eye_steps:
            fit_heads(state, batcher, 4 * config.batch, config.seed, workers)
        _run(config, state, batcher, checkpoint, hardware, workers)
    record: dict[str, Any] = {"config": {k: str(v) for k, v in asdict(config).items()}, "data": frames.digest}
    record |= {"eye_steps": state.vision_step, "steps": state.step, "seconds": round(state.seconds)}
    record |= hardware.record()
    record["last_running_means"] = rounded(state.means)
    if workers.is_leader:
        depth.use_all()
        export(config.out, state.model, tok, record)
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


def _hardware(config: TrainConfig, state: TrainingState, batcher: Batcher, workers: WorkerGroup) -> Hardware:
    """Return the leader's choice, so that one run has one number format."""
    device = state.device
    if workers.is_leader:
        hardware = choose(state, config.precision, device, lambda: _probe(config, state, batcher))
        workers.broadcast(hardware.precision)
        return hardware
    state.precision = "bfloat16" if workers.broadcast("") == "bfloat16" else "float32"
    return Hardware(device, state.precision)


def _probe(config: TrainConfig, state: TrainingState, batcher: Batcher) -> Callable[[], torch.Tensor]:
    """Return the loss of one batch, to be timed."""
    batch = batcher.draw(WorkerGroup().rng(config.seed, 0x9EC), config.batch).to(state.device)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            features = image_features(state.model, batch.pixels)
        return answer_loss(logits_of(state.model, features, batch), batch)

    return forward


def _run(
    config: TrainConfig,
    state: TrainingState,
    batcher: Batcher,
    checkpoint: Path,
    hardware: Hardware,
    workers: WorkerGroup,
) -> None:
    depth = LayerStack(state.model)
    guide = load_guide(config.distil, state.device) if config.distil else None
    log = (config.out / "log.jsonl").open("a")
    started_s, before_s = time.monotonic(), state.seconds
    bar = tqdm(
        _steps(config, state),
        total=config.eye_steps + config.steps,
        initial=state.vision_step + state.step,
        desc=config.role,
        mininterval=5,
        disable=not workers.is_leader,
    )
    for is_vision, number in bar:
        rng = workers.rng(config.seed, int(is_vision), number)
        _set_rates(config, state.optimizer, is_vision, number)
        if is_vision:
            new = _vision_step(
                state, batcher.views(rng, 4 * config.batch).to(state.device), hardware, workers
            )
        else:
            depth.grow(layers_at(config.growth, number, config.steps))
            batch = batcher.draw(rng, config.batch).to(state.device)
            new = _step(state, batch, batcher, guide, hardware, workers)
        state.means = updated(state.means, new)
        state.seconds = before_s + time.monotonic() - started_s
        if not workers.is_leader:
            continue
        if number % config.log_every == 0:
            bar.set_postfix({k: f"{v:.3f}" for k, v in state.means.items()}, refresh=False)
            row = {"eye": is_vision, "step": number, "s": round(state.seconds)}
            log.write(json.dumps(row | rounded(state.means)) + "\n")
            log.flush()
        if number % config.checkpoint_every == 0:
            state.save(checkpoint)
    if workers.is_leader:
        state.save(checkpoint)
    log.close()


def _steps(config: TrainConfig, state: TrainingState) -> Iterator[tuple[bool, int]]:
    while state.vision_step < config.eye_steps:
        state.vision_step += 1
        yield True, state.vision_step
    last = config.steps if config.stop_after is None else config.stop_after
    while state.step < last:
        state.step += 1
        yield False, state.step


def _set_rates(config: TrainConfig, optimizer: MuonWithAdamW, is_vision: bool, number: int) -> None:
    total = config.eye_steps if is_vision else config.steps
    left = (total - number) / (config.decay_share * total)
    rate = config.peak_rate * min(1.0, number / WARM_UP, max(0.02, left))
    for group in optimizer.param_groups:
        group["lr"] = rate * group["of_peak"] * float(is_vision == (group["name"] == "eye"))


def _vision_step(
    state: TrainingState, views: Views, hardware: Hardware, workers: WorkerGroup
) -> dict[str, float]:
    with hardware.autocast():
        loss = state.heads.loss(image_features(state.model, views.pixels), views.patch_labels)
    _update(state, loss, workers)
    return {"eye_loss": loss.item()}


def load_guide(folder: Path, device: torch.device) -> LlavaForConditionalGeneration:
    """Load the target that a draft learns from. Raises ModelError."""
    guide: LlavaForConditionalGeneration = load_finished(LlavaForConditionalGeneration, folder)
    return guide.to(device).eval().requires_grad_(False)


def _step(
    state: TrainingState,
    batch: Batch,
    batcher: Batcher,
    guide: LlavaForConditionalGeneration | None,
    hardware: Hardware,
    workers: WorkerGroup,
) -> dict[str, float]:
    with hardware.autocast():
        with torch.no_grad():
            features = image_features(state.model, batch.pixels)
        logits = logits_of(state.model, features, batch)
        if guide is None:
            loss, labels = answer_loss(logits, batch), batch.labels
        else:
            with torch.inference_mode():
                wanted = logits_of(guide, image_features(guide, batch.pixels), batch)
            loss = distil_loss(logits, wanted.clone(), batch)
            labels = wanted.argmax(-1)
    _update(state, loss, workers)
    right = (logits.argmax(-1) == labels).cpu().numpy()
    informative = batcher.informative[labels.cpu().numpy()]
    return {
        "loss": loss.item(),
        "telling": float(right[informative].mean()),
        "rest": float(right[~informative].mean()),
    }


def _update(state: TrainingState, loss: torch.Tensor, workers: WorkerGroup) -> None:
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    workers.average((*state.model.parameters(), *state.heads.parameters()))
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    state.optimizer.step()


def layers_at(growth: Growth, step: int, steps: int) -> int | None:
    """Return how many layers the `step`th of `steps` trains, counted from 1; None for all there are."""
    if not growth:
        return None
    return [layers for share, layers in growth if step > share * steps][-1]


class LayerStack:
    """Controls how many layers of a model are used. The others are identities: their output is zero."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        self._language = model.model.language_model
        self._layers: Sequence[nn.Module] = self._language.layers

    @property
    def used(self) -> int:
        """Number of used layers, from below."""
        return int(self._language.config.num_hidden_layers)

    def begin(self, count: int) -> None:
        """Use the first `count` layers of a new model, and zero the outputs of the rest."""
        for layer in self._layers[count:]:
            _silence(layer)
        self._use(count)

    def resume(self) -> None:
        """Use the layers with a non-zero output: trained layers stay in use, whatever `growth` is."""
        self._use(sum(bool(layer.mlp.down_proj.weight.any()) for layer in self._layers))  # type: ignore[union-attr, operator]

    def use_all(self) -> None:
        """Count unused layers as layers again; the model's output stays the same."""
        self._use(len(self._layers))

    def grow(self, count: int | None) -> None:
        """Add layers until there are `count`, each a copy of one below with zero output. None adds none."""
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
    """Zero the output of a transformer layer, so that it adds nothing to its input."""
    layer.self_attn.o_proj.weight.zero_()  # type: ignore[union-attr, operator]
    layer.mlp.down_proj.weight.zero_()  # type: ignore[union-attr, operator]


STEPS = 300
RATE = 1e-2
"""Constant, then falling linearly to zero over the second half."""


def fit_heads(
    state: TrainingState, batcher: Batcher, images: int, seed: int, workers: WorkerGroup, steps: int = STEPS
) -> float:
    """Train the heads alone for `steps` of `images` each, and return the last loss.

    The tower is unchanged.
    """
    optimizer = torch.optim.AdamW(state.heads.parameters(), RATE)
    loss = torch.zeros(())
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, 2 * (steps - step) / steps)
        views = batcher.views(workers.rng(seed, 0x4EAD, step), images).to(state.device)
        with torch.no_grad():
            features = image_features(state.model, views.pixels)
        loss = state.heads.loss(features, views.patch_labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        workers.average(state.heads.parameters())
        optimizer.step()
    return loss.item()
