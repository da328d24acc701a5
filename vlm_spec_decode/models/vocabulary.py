"""Whether token ids mean the same to two models that are to work together, told before weights are read.

A tokenizer is read in a second, weights take minutes: a draft and a target that are loaded for each other
compare their vocabularies in between. An engine that says nothing while it loads is compared afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, TypeAlias

from vlm_spec_decode.core.errors import ModelError, VocabularyMismatch
from vlm_spec_decode.core.ports import ModelCard
from vlm_spec_decode.models.engines.base import LoadedModel

Role: TypeAlias = Literal["draft", "target"]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The ids of a model: the digest of its tokenizer, and how many there are."""

    model_id: str
    tokenizer_digest: str
    vocab_size: int


def assert_same_vocabulary(draft: ModelCard | Vocabulary, target: ModelCard | Vocabulary) -> None:
    """Raise VocabularyMismatch unless token ids mean the same to both models."""
    ours, theirs = (draft.tokenizer_digest, draft.vocab_size), (target.tokenizer_digest, target.vocab_size)
    if ours != theirs:
        raise VocabularyMismatch(
            f"draft {draft.model_id} ({draft.vocab_size} tokens, {draft.tokenizer_digest}) and target "
            f"{target.model_id} ({target.vocab_size} tokens, {target.tokenizer_digest}) differ in vocabulary"
        )


class Agreement:
    """Holds a draft and a target to one vocabulary while they are loaded.

    If they are loaded `beside` each other, the first one waits for the other's vocabulary before it goes on,
    unless the other load fails. `error` is that of the load that failed first.
    """

    def __init__(self, *, beside: bool = False) -> None:
        self.error: BaseException | None = None
        self._beside = beside
        self._told: dict[Role, ModelCard | Vocabulary] = {}
        self._changed = threading.Condition()

    def load(self, role: Role, load: Callable[[], LoadedModel]) -> LoadedModel:
        """Load one of the two. Raises what `load` raises, and VocabularyMismatch."""
        token = _PART.set((self, role))
        try:
            model = load()
            self.tell(role, model.card)
        except BaseException as error:
            with self._changed:
                self.error = self.error or error
                self._changed.notify_all()
            raise
        finally:
            _PART.reset(token)
        return model

    def tell(self, role: Role, vocabulary: ModelCard | Vocabulary) -> None:
        """Compare a vocabulary with the other one's. Raises VocabularyMismatch; ModelError if that failed."""
        with self._changed:
            self._told[role] = vocabulary
            self._changed.notify_all()
            if self._beside:
                self._changed.wait_for(lambda: len(self._told) == 2 or self.error is not None)
            if len(self._told) == 2:
                assert_same_vocabulary(self._told["draft"], self._told["target"])
            elif self._beside:
                raise ModelError("stopped, because the load beside it has failed")


_PART: ContextVar[tuple[Agreement, Role] | None] = ContextVar("part", default=None)


def tell_vocabulary(vocabulary: Vocabulary) -> None:
    """Say, before weights are read, which ids the model has that is being loaded.

    Raises VocabularyMismatch if it is loaded for another one that has others.
    """
    part = _PART.get()
    if part is not None:
        agreement, role = part
        agreement.tell(role, vocabulary)
