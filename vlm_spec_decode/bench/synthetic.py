"""A pair of models whose acceptance is known: for simulations, never for the shipped figures.

After any prefix the target's choice is the draft's first with probability `acceptance`, else its second,
third, … with geometric weights; independent per position, and the draft's probabilities say exactly that.
An early exit names the target's choice with a probability of its own. Everything is a hash of the prefix,
so the pair is deterministic and any tree may be asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from vlm_spec_decode.bench.recorded import paths_of
from vlm_spec_decode.core.choices import Logits
from vlm_spec_decode.core.ports import ExitHook, Model, ModelCard, ModelContext
from vlm_spec_decode.core.types import Observation, Tokens

LAYERS = 100
"""An exit's layer is its depth in per cent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSpec:
    """`spread` is the geometric ratio of the ranks behind the first; `exits` (depth in %, accuracy)."""

    acceptance: float
    spread: float = 0.5
    vocab_size: int = 32
    ranks: int = 12
    exits: tuple[tuple[int, float], ...] = ((25, 0.55), (50, 0.7), (75, 0.85))
    seed: int = 0

    @property
    def rank_probabilities(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Probability of each rank, best first [ranks]."""
        tail = self.spread ** np.arange(self.ranks - 1)
        return np.concatenate([[self.acceptance], (1 - self.acceptance) * tail / tail.sum()])


@dataclass(slots=True)
class _Node:
    ranking: np.ndarray[tuple[int], np.dtype[np.int64]]
    choice: int
    exit_choices: tuple[int, ...]


@dataclass(slots=True)
class _PairTable:
    """What both models of a pair know: at each prefix the draft's ranking and the target's choice."""

    spec: PairSpec
    nodes: dict[Tokens, _Node] = field(default_factory=dict)
    rank_probabilities: np.ndarray[tuple[int], np.dtype[np.float64]] = field(init=False)

    def __post_init__(self) -> None:
        self.rank_probabilities = self.spec.rank_probabilities

    def at(self, prefix: Tokens) -> _Node:
        if prefix not in self.nodes:
            spec = self.spec
            rng = np.random.default_rng([spec.seed, *prefix, 7])
            ranking = rng.permutation(spec.vocab_size)[: spec.ranks].astype(np.int64)
            choice = int(ranking[rng.choice(spec.ranks, p=self.rank_probabilities)])
            right = rng.random(len(spec.exits))
            guesses = (
                choice if r < accuracy else int(ranking[rng.choice(spec.ranks, p=self.rank_probabilities)])
                for r, (_, accuracy) in zip(right, spec.exits, strict=True)
            )
            self.nodes[prefix] = _Node(ranking, choice, tuple(guesses))
        return self.nodes[prefix]


@dataclass(slots=True)
class _Context(ModelContext):
    table: _PairTable
    is_target: bool

    def prefill(self) -> None:
        """Do nothing."""

    def score(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit: ExitHook | None = None
    ) -> Logits:
        """Return logits [1 + n, vocab]; call `on_exit` for each exit."""
        nodes = [self.table.at(path) for path in paths_of(prefix, tokens, parents)]
        spec = self.table.spec
        if on_exit and self.is_target:
            for index, (depth, accuracy) in enumerate(spec.exits):
                on_exit(depth, self._peaked([p.exit_choices[index] for p in nodes], accuracy))
        if self.is_target:
            return self._peaked([p.choice for p in nodes], 0.999)
        logits = np.full((len(nodes), spec.vocab_size), -30.0, dtype=np.float32)
        log_law = np.log(self.table.rank_probabilities)
        for row, node in zip(logits, nodes, strict=True):
            row[node.ranking] = log_law
        return logits

    def forced(self, prefix: Tokens) -> Tokens:  # noqa: ARG002
        """Return (): there is no grammar."""
        return ()

    def close(self) -> None:
        """Do nothing."""

    def _peaked(self, choices: list[int], confidence: float) -> Logits:
        size = self.table.spec.vocab_size
        logits = np.full((len(choices), size), np.log((1 - confidence) / (size - 1)), dtype=np.float32)
        logits[np.arange(len(choices)), choices] = np.log(confidence)
        return logits


@dataclass(frozen=True, slots=True)
class SyntheticModel(Model):
    """One half of a pair."""

    table: _PairTable
    is_target: bool

    @property
    def card(self) -> ModelCard:
        """Identity."""
        spec = self.table.spec
        name = "target" if self.is_target else "draft"
        exits = tuple(depth for depth, _ in spec.exits)
        return ModelCard(f"synthetic {name}", "1", "synthetic", "none", spec.vocab_size, LAYERS, exits)

    def open(self, observation: Observation) -> _Context:  # noqa: ARG002
        """Start one answer."""
        return _Context(self.table, self.is_target)


def pair(spec: PairSpec) -> tuple[SyntheticModel, SyntheticModel]:
    """Return (draft, target)."""
    make = partial(SyntheticModel, _PairTable(spec))
    return make(is_target=False), make(is_target=True)


@dataclass(frozen=True, slots=True)
class SyntheticFamily(Model):
    """One half of many pairs of one law: an observation's `frame_id` is the seed of its pair."""

    spec: PairSpec
    is_target: bool
    worlds: dict[str, _PairTable]

    @classmethod
    def pair(cls, spec: PairSpec) -> tuple[SyntheticFamily, SyntheticFamily]:
        """Return (draft, target)."""
        worlds: dict[str, _PairTable] = {}
        return cls(spec, False, worlds), cls(spec, True, worlds)

    @property
    def card(self) -> ModelCard:
        """Identity."""
        return SyntheticModel(_PairTable(self.spec), self.is_target).card

    def open(self, observation: Observation) -> _Context:
        """Start one answer of the pair that the observation names."""
        name = observation.frame_id
        table = self.worlds.setdefault(name, _PairTable(replace(self.spec, seed=int(name))))
        return _Context(table, self.is_target)
