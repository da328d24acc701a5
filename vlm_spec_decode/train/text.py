"""Training and evaluation of the language-only pair: the same world, described in words.

The target learns the teacher's answers. The draft learns the target: half of each batch are answers that the
target itself gave, at temperature 0 and 1, under the target's own distribution at every position. Every draw
comes from (seed, step), so a resumed run is the same run.

Evaluation uses held-out rooms, in part with held-out wordings. It is open loop: the words of one view in,
one plan out, compared with the teacher's.
"""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.types import Action, Turn, action_numbers
from vlm_spec_decode.models import tiny
from vlm_spec_decode.models.checkpoint import named, read_tensors
from vlm_spec_decode.models.hardware import memory_named
from vlm_spec_decode.models.loader import load_model
from vlm_spec_decode.models.subword import read_subword_tokenizer
from vlm_spec_decode.train import evaluate
from vlm_spec_decode.train.batches import Batch, answer_loss, distil_loss
from vlm_spec_decode.train.config import TextConfig, held_out_seed
from vlm_spec_decode.train.evaluate import TEMPERATURES, Pair
from vlm_spec_decode.train.hardware import ATTENTION, Hardware, Precision, choose, pick_device
from vlm_spec_decode.train.instructions import held_out
from vlm_spec_decode.train.loop import tokenizer
from vlm_spec_decode.train.teacher import AnswerStyle, Dialogue
from vlm_spec_decode.train.text_dataset import GuidedTextDataset, TextDataset, held_out_dialogue
from vlm_spec_decode.train.training_state import (
    CPU,
    MEMORY_ADVICE,
    exporting,
    fitting,
    load_checkpoint,
    load_finished,
    rounded,
    save_checkpoint,
    updated,
)

WARM_SHARE = 0.05
"""Fraction of the steps in which the learning rate rises."""


@dataclass(slots=True)
class TextTrainingState:
    """A language model in training with everything that a checkpoint holds."""

    model: LlamaForCausalLM
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    precision: Precision | None = None
    means: dict[str, float] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write a checkpoint. Raises ModelError."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"counters": (self.step, self.seconds), "precision": self.precision, "means": self.means}
        save_checkpoint(state, path)

    def load(self, path: Path) -> None:
        """Load a checkpoint. Raises ModelError."""
        state = load_checkpoint(path)
        with fitting(path):
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["counters"]
            self.precision = state.get("precision", "float32")
            self.means = state.get("means", {})


def run_text(config: TextConfig) -> dict[str, Any]:
    """Train one model and export it to `config.out`; resumes from its checkpoint. Returns the record.

    Raises ModelError if a checkpoint cannot be written or read, or the memory is too small.
    """
    torch.set_num_threads(config.threads)
    tok = read_subword_tokenizer(config.tokenizer) if config.tokenizer else tokenizer()
    device = pick_device(config.device)
    training = new_text_training_state(config, len(tok), device)
    config.out.mkdir(parents=True, exist_ok=True)
    checkpoint = config.out / "checkpoint.pt"
    if checkpoint.exists():
        training.load(checkpoint)
    guide = _load_guide(config.distil, device) if config.distil else None
    style = AnswerStyle(config.description, config.max_step_m)
    drawn = TextDataset(tok, config.batch, config.seed, style)
    dataset = GuidedTextDataset(drawn, guide) if guide else drawn
    with memory_named(MEMORY_ADVICE):
        hardware = choose(training, config.precision, device, lambda: _probe(training, drawn, device))
        _run(config, training, dataset, checkpoint, hardware)
    settings = {
        k: str(v) for k, v in asdict(config).items() if k not in {"out", "start", "distil", "tokenizer"}
    }
    record = {"config": settings, "data": dataset.digest, "steps": training.step} | hardware.record()
    record |= {"seconds": round(training.seconds), "last_running_means": rounded(training.means)}
    record |= {name: path.name for name in ("start", "distil") if (path := getattr(config, name))}
    _export(config.out, training.model, tok, record)
    return record


def _probe(
    training: TextTrainingState, dataset: TextDataset, device: torch.device
) -> Callable[[], torch.Tensor]:
    """Return the loss of one batch, to be timed."""
    batch = dataset.batch(1).to(device)
    return lambda: answer_loss(text_logits(training.model, batch), batch)


def new_text_training_state(
    config: TextConfig, vocab_size: int, device: torch.device = CPU
) -> TextTrainingState:
    """Build the model of the config's role on `device`, with random weights drawn from its seed."""
    torch.manual_seed(config.seed)
    make = tiny.text_target_config if config.role == "target" else tiny.text_draft_config
    model = LlamaForCausalLM._from_config(make(vocab_size), attn_implementation=ATTENTION)
    model.float().train()
    if config.start:
        load_language_part(model, config.start)
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), config.peak_rate, (0.9, 0.98), weight_decay=0.05)
    return TextTrainingState(model, optimizer)


def load_language_part(model: LlamaForCausalLM, folder: Path) -> None:
    """Load the language part of another model of the same shape and vocabulary. Raises ModelError."""
    with named(str(folder)):
        tensors = read_tensors(folder / "model.safetensors")
        found = {name.removeprefix("language_model."): tensor for name, tensor in tensors.items()}
        model.load_state_dict(
            {n: found[n] for n in model.state_dict() if n != "lm_head.weight"}, strict=False
        )


def text_logits(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Return logits [M, vocab] of the answers' tokens, in the order of `batch.labels`."""
    parts = []
    for group in batch.groups:
        states = model.model(input_ids=group.tokens, use_cache=False).last_hidden_state
        parts.append(model.lm_head(states[group.labels >= 0]))
    return torch.cat(parts)


def _run(
    config: TextConfig,
    training: TextTrainingState,
    dataset: TextDataset | GuidedTextDataset,
    checkpoint: Path,
    hardware: Hardware,
) -> None:
    started_s, before_s = time.monotonic(), training.seconds
    last = config.steps if config.stop_after is None else config.stop_after
    with (config.out / "log.jsonl").open("a") as log:
        for number in tqdm(
            range(training.step + 1, last + 1),
            initial=training.step,
            total=last,
            desc=f"text {config.role}",
            mininterval=5,
        ):
            _set_rate(config, training.optimizer, number)
            new = _step(training, dataset, number, hardware)
            training.means = updated(training.means, new)
            training.step, training.seconds = number, before_s + time.monotonic() - started_s
            if number % config.log_every == 0:
                row = {"step": number, "s": round(training.seconds), **rounded(training.means)}
                log.write(json.dumps(row) + "\n")
                log.flush()
            if number % config.checkpoint_every == 0 or number == last:
                training.save(checkpoint)


def _step(
    training: TextTrainingState, dataset: TextDataset | GuidedTextDataset, number: int, hardware: Hardware
) -> dict[str, float]:
    batch = dataset.batch(number).to(hardware.device)
    with hardware.autocast():
        logits = text_logits(training.model, batch)
        if isinstance(dataset, TextDataset):
            loss, labels = answer_loss(logits, batch), batch.labels
        else:
            with torch.no_grad():
                wanted = text_logits(dataset.guide, batch)
            loss, labels = distil_loss(logits, wanted, batch), wanted.argmax(-1)
    training.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(training.model.parameters(), 1.0)
    training.optimizer.step()
    right, told = (logits.argmax(-1) == labels).float().cpu(), dataset.informative[labels.cpu()]
    return {"loss": loss.item(), "telling": right[told].mean().item(), "rest": right[~told].mean().item()}


def _set_rate(config: TextConfig, optimizer: torch.optim.Optimizer, number: int) -> None:
    left = (config.steps - number) / (config.decay_share * config.steps)
    for group in optimizer.param_groups:
        group["lr"] = config.peak_rate * min(1.0, number / (WARM_SHARE * config.steps), max(0.02, left))


def _load_guide(folder: Path, device: torch.device) -> LlamaForCausalLM:
    guide: LlamaForCausalLM = load_finished(LlamaForCausalLM, folder)
    return guide.to(device).eval().requires_grad_(False)


def _export(
    folder: Path, model: LlamaForCausalLM, tok: PreTrainedTokenizerFast, record: dict[str, Any]
) -> None:
    """Write the folder that `from_pretrained` reads, weights in half precision, and the training record."""
    with exporting(folder) as made:
        copy.deepcopy(model).half().save_pretrained(str(made))
        config = copy.deepcopy(model.config)
        config.dtype, config.architectures = torch.float32, [type(model).__name__]
        config.save_pretrained(str(made))
        tiny.save_text_folder(made, tok)
        (made / "training.json").write_text(json.dumps(record, indent=1) + "\n")


NEAR_DEG, NEAR_M = 10.0, 0.2
"""Largest differences of a plan's numbers from the teacher's that count as near."""


def run_text_evaluate(
    target: Path, draft: Path, count: int, *, first_seed: int | None = None, threads: int = 1
) -> dict[str, Any]:
    """Return the figures of `count` held-out dialogues."""
    first_seed = held_out_seed() if first_seed is None else first_seed
    pair = Pair.of(load_model(target, threads=threads), load_model(draft, threads=threads))
    asked = [held_out_dialogue(seed) for seed in range(first_seed, first_seed + count)]
    results = [
        evaluate.decode(pair, d.observation, pair.params())
        for d in tqdm(asked, desc="told rooms", mininterval=5)
    ]
    figures = plan_figures(asked, [answer.text for answer in results])
    greedy = [(d.observation, answer.tokens) for d, answer in zip(asked, results, strict=True)]
    for temperature in TEMPERATURES:
        answers = greedy
        if temperature:
            params = pair.params(temperature)
            answers = [(o, evaluate.decode(pair, o, params).tokens) for o, _ in greedy]
        found = evaluate.acceptance(pair, answers, temperature)
        mark = f"t{temperature:.0f}"
        figures |= {f"acceptance_{mark}": found["all"], f"acceptance_by_token_{mark}": found["by_token"]}
    lengths = evaluate.accepted_lengths(pair, [o for o, _ in greedy])
    return figures | {f"mean_accepted_of_{g}_t0": value for g, value in lengths.items()}


def plan_figures(asked: list[Dialogue], answers: list[str]) -> dict[str, Any]:
    """Compare answers with the teacher's: the whole text, the exact actions, and the near actions."""
    rows = []
    for dialogue, text in zip(asked, answers, strict=True):
        wanted, plan = parse_answer(dialogue.answer), parse_answer(text)
        is_new = any(_fits(form, dialogue.goal.text) for form in held_out().wordings)
        is_new_pair = dialogue.goal.thing in held_out().pairs
        rows.append(
            (
                evaluate.is_same_answer(text, dialogue.answer),
                plan == wanted,
                near(plan, wanted),
                is_new,
                is_new_pair,
            )
        )
    columns = np.array(rows, dtype=bool)
    totals = Counter(d.goal.verb for d in asked)
    right = Counter(d.goal.verb for d, row in zip(asked, rows, strict=True) if row[1])
    figures: dict[str, Any] = {"answers": len(rows)}
    for i, name in enumerate(("answer_exact", "plan_exact", "plan_near")):
        figures[name] = float(columns[:, i].mean())
    for i, name in ((3, "wordings"), (4, "pairs")):
        chosen = columns[columns[:, i]]
        figures[f"plan_exact_new_{name}"] = f"{chosen[:, 1].sum()}/{len(chosen)}"
    return figures | {
        "plan_exact_by_verb": {verb: f"{right[verb]}/{n}" for verb, n in sorted(totals.items())}
    }


def near(plan: tuple[Action, ...], wanted: tuple[Action, ...]) -> bool:
    """Return whether two plans have the same kinds of action and numbers within 10 degrees and 0.2 m."""
    if [type(action) for action in plan] != [type(action) for action in wanted]:
        return False
    for one, other in zip(plan, wanted, strict=True):
        slack = NEAR_DEG if isinstance(one, Turn) else NEAR_M
        numbers = zip(action_numbers(one), action_numbers(other), strict=True)
        if any(abs(a - b) > slack + 1e-6 for a, b in numbers):
            return False
    return True


def _fits(form: str, text: str) -> bool:
    """Return whether the instruction at the end of `text` has this wording."""
    before, after = form.split("{x}")
    instruction = text.rsplit(" . ", 1)[-1]
    return instruction.startswith(before) and instruction.endswith(after)
