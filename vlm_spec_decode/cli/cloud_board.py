"""What `vsd top --cloud` shows: a cloud's own figures, read from its /metrics as Prometheus reads them."""

from __future__ import annotations

import http.client
import math
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from vlm_spec_decode.core.errors import CloudUnreachable, ConfigError
from vlm_spec_decode.core.ports import Clock

REFRESH_S = 1.0
PATIENCE_S = 5.0

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """All samples of one moment, by name and labels."""

    at_s: float
    samples: Mapping[tuple[str, Labels], float] = field(default_factory=dict)

    def value(self, name: str, **labels: str) -> float:
        """Return one sample, 0 if it is not there."""
        return self.samples.get((name, tuple(sorted(labels.items()))), 0.0)

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """Return all samples of a name by the value of one label."""
        return {dict(labels)[label]: v for (n, labels), v in self.samples.items() if n == name and v}

    def quantile(self, name: str, fraction: float) -> float | None:
        """Return a quantile of a histogram by its buckets' upper bounds, None while it is empty."""
        bounds = {float(at): n for at, n in self.by_label(f"{name}_bucket", "le").items()}
        total = bounds.get(math.inf, 0.0)
        reached = [bound for bound, count in sorted(bounds.items()) if total and count >= fraction * total]
        return reached[0] if reached else None


def read(url: str, clock: Clock) -> Reading:
    """Ask a cloud for its figures. Raises ConfigError for no http URL, CloudUnreachable."""
    if not url.startswith("http://"):
        raise ConfigError(f"{url!r}: http://127.0.0.1:PORT is expected (`vsd cloud --http`)")
    try:
        # No proxy of the environment: the cloud's page is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{url.rstrip('/')}/metrics", timeout=PATIENCE_S) as reply:
            text = reply.read().decode("utf-8")
        families = list(text_string_to_metric_families(text))
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise CloudUnreachable(f"{url}: {error}") from error
    samples = {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}
    return Reading(clock.now(), samples)


def document(now: Reading, before: Reading | None = None) -> dict[str, Any]:
    """Return the figures of a reading; rates need an earlier reading."""
    passes = now.value("vsd_passes_total")
    build = next((dict(labels) for (name, labels) in now.samples if name == "vsd_build"), {})
    return {
        "model": build.get("model", ""),
        "ready": bool(now.value("vsd_ready")),
        "robots": int(now.value("vsd_peers")),
        "sessions": int(now.value("vsd_sessions")),
        "waiting": int(now.value("vsd_waiting")),
        "replicas": {state: int(n) for state, n in now.by_label("vsd_replicas", "state").items()},
        "answers": int(now.value("vsd_answers_finished_total")),
        "resumed": int(now.value("vsd_answers_resumed_total")),
        "answers_per_s": _rate(now, before, "vsd_answers_finished_total"),
        "tokens_per_s": _rate(now, before, "vsd_tokens_committed_total"),
        "mean_batch": round(now.value("vsd_pass_shares_total") / passes, 2) if passes else None,
        "first_token_p50_s": now.quantile("vsd_first_token_seconds", 0.5),
        "first_token_p99_s": now.quantile("vsd_first_token_seconds", 0.99),
        "answer_p50_s": now.quantile("vsd_answer_seconds", 0.5),
        "answer_p99_s": now.quantile("vsd_answer_seconds", 0.99),
        "refused": {name: int(n) for name, n in now.by_label("vsd_refusals_total", "reason").items()},
        "dropped": {name: int(n) for name, n in now.by_label("vsd_dropped_total", "reason").items()},
        "kv_bytes": int(now.value("vsd_kv_bytes")),
        "memory_bytes": int(now.value("process_resident_memory_bytes")),
    }


def show(url: str, clock: Clock, seconds: float | None, *, quiet: bool, once: bool) -> dict[str, Any]:
    """Draw until the time is up or an interrupt, and return the last figures. Raises CloudUnreachable."""
    until_s = None if seconds is None else clock.now() + seconds
    console = Console(quiet=quiet)
    before = now = read(url, clock)
    if once:
        console.print(view(url, document(now)))
        return document(now)
    try:
        with Live(view(url, document(now)), console=console, auto_refresh=False) as live:
            while until_s is None or clock.now() < until_s:
                clock.sleep(REFRESH_S)
                try:
                    before, now = now, read(url, clock)
                except CloudUnreachable as error:
                    # The cloud may be restarted.
                    live.update(Panel(str(error)), refresh=True)
                    continue
                live.update(view(url, document(now, before)), refresh=True)
    except KeyboardInterrupt:
        pass
    return document(now, before)


def view(url: str, found: Mapping[str, Any]) -> Group:
    """Return the figures as a table for the terminal."""
    table = Table.grid(padding=(0, 2))
    state = "ready" if found["ready"] else "takes no new answers"
    table.add_row("state", state)
    for name in ("model", "robots", "sessions", "waiting", "replicas", "answers", "resumed"):
        if found[name] or name not in {"replicas", "resumed"}:
            table.add_row(name, _format_value(found[name]))
    for name in ("answers_per_s", "tokens_per_s", "mean_batch"):
        table.add_row(name.replace("_per_s", " a second").replace("_", " "), _format_value(found[name]))
    for name in ("first_token", "answer"):
        times = (found[f"{name}_{quantile}_s"] for quantile in ("p50", "p99"))
        times_text = ", ".join("none yet" if time is None else f"{1000 * time:.0f} ms" for time in times)
        table.add_row(f"{name.replace('_', ' ')}, p50 and p99 below", times_text)
    for name in ("refused", "dropped"):
        table.add_row(name, _format_value(found[name]))
    table.add_row(
        "memory", f"{found['memory_bytes'] / 2**20:.0f} MiB, caches {found['kv_bytes'] / 2**20:.0f} MiB"
    )
    return Group(Panel(table, title=f"cloud at {url}", title_align="left"))


def _format_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {count}" for name, count in sorted(value.items())) or "none"
    return "none yet" if value is None else str(value)


def _rate(now: Reading, before: Reading | None, name: str) -> float | None:
    """Return the rate of a counter per second; None without an earlier reading or after a restart."""
    if before is None or now.at_s <= before.at_s or now.value(name) < before.value(name):
        return None
    return round((now.value(name) - before.value(name)) / (now.at_s - before.at_s), 2)
