"""Mailbox and inbox in one: what came since the last tick, with what nobody is to hear any more barred."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlm_spec_decode.actions.inbox import PlanInbox
from vlm_spec_decode.actions.mailbox import Letter, Mailbox


@dataclass(slots=True)
class Reception:
    """`post` and `drop` may be called from any thread; `take` and `inbox` belong to the control thread."""

    inbox: PlanInbox = field(default_factory=PlanInbox)
    _mailbox: Mailbox = field(default_factory=Mailbox)

    def post(self, letter: Letter, *, void: bool) -> None:
        """Leave a plan; a void one is only answered, never carried out."""
        self._mailbox.post(letter, void=void)

    def drop(self, reason: str) -> None:
        """Void what was posted so far, and tell the control thread to drop what it does."""
        self._mailbox.drop(reason)

    def take(self, drop_now: str) -> tuple[str, tuple[Letter, ...]]:
        """Return why to drop what is under way, if so, and the letters to answer; `drop_now` drops all."""
        if drop_now:
            self._mailbox.drop(drop_now)
        orders = self._mailbox.take()
        reason = orders.drop_reason
        for letter in orders.void:
            self.inbox.bar(letter.plan.mission, reason or "estop")
        if reason and self.inbox.plan is not None:
            self.inbox.bar(self.inbox.plan.mission, reason)
        return reason, (*orders.void, *orders.letters)
