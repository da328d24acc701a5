"""The answers that are open at a desk, by robot and number."""

from __future__ import annotations

from collections import OrderedDict

from vlm_spec_decode.cloud.entry import Entry


class Book(OrderedDict[tuple[bytes, int], Entry]):
    """Entries in the order in which they were opened."""

    def current(self, peer: bytes, answer: int, epoch: int) -> Entry | None:
        """Return the entry that a message is about, None if it is of another epoch or of no open answer."""
        entry = self.get((peer, answer))
        return entry if entry and entry.message.epoch == epoch else None

    def of(self, peer: bytes | None) -> list[Entry]:
        """Return a robot's entries, the oldest first."""
        return [entry for entry in self.values() if entry.peer == peer]

    def silent(self, since_s: float) -> list[Entry]:
        """Return the entries that nobody has asked about since."""
        return [entry for entry in self.values() if entry.touched_s < since_s]

    def under_way(self, since_s: float) -> bool:
        """Tell whether answers are open that have not ended and have been asked about since."""
        return any(not entry.is_finished and entry.touched_s >= since_s for entry in self.values())

    def end(self, entry: Entry) -> None:
        """Close an entry; its context goes once no job of it runs."""
        self.pop((entry.peer, entry.message.answer), None)
        entry.closed = True
        if not entry.running:
            entry.release()
