"""Whom the desk serves: robots whose tokens mean what they mean here, while there is room for them."""

from __future__ import annotations

from dataclasses import dataclass

from vlm_spec_decode.cloud.book import Book
from vlm_spec_decode.cloud.limits import DeskLimits
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.ports import ModelCard
from vlm_spec_decode.protocol.messages import MAX_IMAGE_BYTES, Hello, Open, Welcome
from vlm_spec_decode.strategies.registry import STRATEGIES, strategy

Trouble = tuple[str, str]
"""The name of a refusal and its detail."""


@dataclass(frozen=True, slots=True)
class Admission:
    """The rules; who is there is told to it."""

    card: ModelCard
    grammar_digest: str
    limits: DeskLimits

    def mismatch(self, hello: Hello) -> Trouble | None:
        """Return why a robot's tokens do not mean the same here, or None."""
        mine = {
            "vocabulary": self.card.vocab_size,
            "tokenizer": self.card.tokenizer_digest,
            "prompt": self.card.prompt_digest,
            "grammar": self.grammar_digest,
        }
        theirs = {
            "vocabulary": hello.vocab_size,
            "tokenizer": hello.tokenizer_digest,
            "prompt": hello.prompt_digest,
            "grammar": hello.grammar_digest,
        }
        for name, value in mine.items():
            if theirs[name] != value:
                detail = f"the robot's draft has {theirs[name]}, {self.card.model_id} has {value}"
                return f"{name}_mismatch", detail
        return None

    def welcome(self) -> Welcome:
        """Return what a robot is told whose tokens do."""
        card = self.card
        identity = (card.model_id, card.revision, card.num_layers, card.exit_layers)
        return Welcome(*identity, self.limits.image_window_bytes, MAX_IMAGE_BYTES, tuple(STRATEGIES))

    def unserved(self, message: Open, has_helper: bool) -> Trouble | None:
        """Return why an answer can never be served here, or None."""
        try:
            chosen = strategy(message.strategy)
        except ConfigError as error:
            return "unknown_strategy", str(error)
        if chosen.needs_helper and not has_helper:
            return "no_draft", f"{chosen.name} needs a draft beside the target (vsd cloud --draft)"
        return None

    def full(self, message: Open, book: Book, has_memory: bool, is_draining: bool) -> str:
        """Return what there is no room of for one more answer now, "" if there is room of everything.

        An answer that goes on after a loss is no new one: a cloud that is to end lets it come to its end.
        """
        if is_draining and not message.committed:
            return "draining"
        if len(book) >= self.limits.sessions:
            return "sessions"
        if not has_memory:
            return "memory"
        awaited = sum(entry.message.image_bytes for entry in book.values() if entry.awaits_image)
        return "images" if awaited + message.image_bytes > self.limits.image_inbox_bytes else ""
