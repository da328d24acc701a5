"""Decorators around the ports that measure an answer and know nothing of strategies."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlm_spec_decode.core.ports import Clock, Drafter, ExitHook, Logits, ModelContext, Verifier
from vlm_spec_decode.core.trace import LinkUsage, RoundTrace
from vlm_spec_decode.core.types import AnswerRequest, Commit, Correction, DraftMessage, Event, Hint, Tokens
from vlm_spec_decode.decoding.tree import SpeculationTree


@dataclass(slots=True)
class TracingVerifier:
    """A verifier whose drafts, commits and waits are counted; one answer long."""

    inner: Verifier
    clock: Clock
    rounds: list[RoundTrace] = field(default_factory=list)
    early_verdicts: int = 0
    draft_s: float = 0.0
    why: str = ""
    _opened_s: float = 0.0
    _wait_s: float = 0.0
    _drafted: int = 0
    _tree: SpeculationTree = field(default_factory=SpeculationTree)

    @property
    def elapsed_s(self) -> float:
        """Time since the answer was opened."""
        return self.clock.now() - self._opened_s

    def open(self, request: AnswerRequest) -> None:
        """Open the answer and start its clock."""
        self._opened_s = self.clock.now()
        if request.draft:
            self._drafted += len(request.draft.tokens)
            self._tree.add(request.draft)
        self.inner.open(request)

    def submit(self, hint: Hint) -> None:
        """Count and pass on."""
        if isinstance(hint, DraftMessage):
            self._drafted += len(hint.tokens)
            self._tree.add(hint)
        elif isinstance(hint, Correction):
            self._tree.advance((hint.token,))
        self.inner.submit(hint)

    def poll(self) -> Event | None:
        """Pass on, counting what comes."""
        event = self.inner.poll()
        return self._count(event) if event else None

    def wait(self, timeout_s: float) -> Event:
        """Pass on, counting what comes and how long it took."""
        started_s = self.clock.now()
        event = self.inner.wait(timeout_s)
        self._wait_s += self.clock.now() - started_s
        return self._count(event)

    def cancel(self) -> None:
        """Pass on."""
        self.inner.cancel()

    def close(self) -> None:
        """Pass on."""
        self.inner.close()

    @property
    def usage(self) -> LinkUsage:
        """Pass on."""
        return self.inner.usage

    def explain(self, why: str) -> None:
        """Keep the strategy's last reason for the round's trace."""
        self.why = why

    def _count(self, event: Event) -> Event:
        if not isinstance(event, Commit):
            self.early_verdicts += 1
            return event
        alive = set(self._tree.nodes)
        self._tree.advance(event.tokens)
        accepted = len(alive & self._tree.confirmed)
        trace = RoundTrace(
            event.start,
            self._drafted,
            accepted,
            len(event.tokens),
            self.draft_s,
            self._wait_s,
            event.compute_s,
            self.elapsed_s,
            self.why,
        )
        self.rounds.append(trace)
        self._drafted, self._wait_s, self.draft_s, self.why = 0, 0.0, 0.0, ""
        return event


@dataclass(slots=True)
class TracingDrafter(ModelContext):
    """A drafter whose time is charged to the round."""

    inner: Drafter
    watch: TracingVerifier

    def prefill(self) -> None:
        """Pass on."""
        self.inner.prefill()

    def score(
        self, prefix: Tokens, tokens: Tokens = (), parents: Tokens = (), *, on_exit: ExitHook | None = None
    ) -> Logits:
        """Pass on, adding the time that it took."""
        started_s = self.watch.clock.now()
        logits = self.inner.score(prefix, tokens, parents, on_exit=on_exit)
        self.watch.draft_s += self.watch.clock.now() - started_s
        return logits

    def forced(self, prefix: Tokens) -> Tokens:
        """Pass on."""
        return self.inner.forced(prefix)

    def close(self) -> None:
        """Pass on."""
        self.inner.close()


class NoDrafter(ModelContext):
    """The drafter of strategies that have none."""

    def prefill(self) -> None:
        """Do nothing."""

    def score(
        self,
        prefix: Tokens,  # noqa: ARG002
        tokens: Tokens = (),  # noqa: ARG002
        parents: Tokens = (),  # noqa: ARG002
        *,
        on_exit: ExitHook | None = None,  # noqa: ARG002
    ) -> Logits:
        """Refuse: asking for a draft is a mistake in the strategy's registration."""
        raise RuntimeError("this strategy does not draft")

    def forced(self, prefix: Tokens) -> Tokens:  # noqa: ARG002
        """Return (): what is forced comes with the commits."""
        return ()

    def close(self) -> None:
        """Do nothing."""
