"""A model whose logits are stored: rows that several strategies need are computed once.

A row of logits is a function of the question and the path of tokens, so a sweep over strategies, profiles
and links runs each model once per path. The last bits of a row depend on the shape of the pass; here all
strategies get the same rows, so that has no effect on the comparison.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vlm_spec_decode.core.choices import Logits
from vlm_spec_decode.core.ports import ExitHook, ModelContext, WrappedModel
from vlm_spec_decode.core.types import Observation, Tokens
from vlm_spec_decode.decoding.sampling import Row


@dataclass(slots=True)
class Memory:
    """The outputs of one model for one question, by path: rows [vocab], exits {layer: row}, forced runs."""

    context: ModelContext
    exit_layers: Tokens
    rows: dict[Tokens, Row] = field(default_factory=dict)
    exits: dict[Tokens, dict[int, Row]] = field(default_factory=dict)
    runs: dict[Tokens, Tokens] = field(default_factory=dict)

    def compute(self, prefix: Tokens, tokens: Tokens, parents: Tokens, paths: list[Tokens]) -> None:
        """Run the model on this tree and store all rows, with those of the exits."""
        early: dict[int, Logits] = {}

        def record_exit(exit_layer: int, logits: Logits) -> None:
            early[exit_layer] = logits

        logits = self.context.score(
            prefix, tokens, parents, on_exit=record_exit if self.exit_layers else None
        )
        for index, path in enumerate(paths):
            if path not in self.rows:
                self.rows[path] = logits[index]
                self.exits[path] = {layer: rows[index] for layer, rows in early.items()}


def paths_of(prefix: Tokens, tokens: Tokens, parents: Tokens) -> list[Tokens]:
    """Return the tokens on the way to each row of a pass: to `prefix` itself, then to each of `tokens`.

    `parents[i]` is the row before `tokens[i]`; row 0 is the prefix.
    """
    paths = [prefix]
    for token, parent in zip(tokens, parents, strict=True):
        paths.append((*paths[parent], token))
    return paths


@dataclass(slots=True)
class RecordedContext(ModelContext):
    """`ModelContext` over a memory; any number may be open on one."""

    memory: Memory

    def prefill(self) -> None:
        """Do nothing: the first miss fills the prompt."""

    def score(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit: ExitHook | None = None
    ) -> Logits:
        """Return logits [1 + n, vocab], computed only if a row is new; `on_exit` is called either way."""
        paths = paths_of(prefix, tokens, parents)
        memory = self.memory
        if any(path not in memory.rows for path in paths):
            memory.compute(prefix, tokens, parents, paths)
        if on_exit is not None:
            for layer in memory.exit_layers:
                known = [memory.exits[path].get(layer) for path in paths]
                if all(row is not None for row in known):
                    on_exit(layer, np.stack([row for row in known if row is not None]))
        logits: Logits = np.stack([memory.rows[path] for path in paths])
        return logits

    def forced(self, prefix: Tokens) -> Tokens:
        """Return the run that the grammar forces after `prefix`."""
        runs = self.memory.runs
        if prefix not in runs:
            runs[prefix] = self.memory.context.forced(prefix)
        return runs[prefix]

    def exit_chance(self, exit_layer: int, confidence: float) -> float:
        """Return the calibration of the recorded model."""
        return self.memory.context.exit_chance(exit_layer, confidence)

    def close(self) -> None:
        """Do nothing: the stored rows stay for the next answer."""


@dataclass(frozen=True, slots=True)
class RecordedModel(WrappedModel):
    """`Model` that opens each question of `questions` once, by `frame_id`, and stores its rows.

    An observation without its image (so that a link is not charged for it) still finds its question.
    """

    questions: dict[str, Observation]
    memories: dict[str, Memory] = field(default_factory=dict)

    def open(self, observation: Observation) -> ModelContext:
        """Start one answer to a known question."""
        name = observation.frame_id
        if name not in self.memories:
            context = self.inner.open(self.questions[name])
            self.memories[name] = Memory(context, self.card.exit_layers)
        return RecordedContext(self.memories[name])
