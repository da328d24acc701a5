"""The settings of `vsd serve`. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlm_spec_decode.core.config import setting
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.types import MAX_OPEN_ANSWERS

FALLBACKS = ("none", "draft")
"""Who answers without the cloud: nobody, or the draft alone, which no target verifies; every reply of its own
says so."""

KEY_VARIABLE = "VSD_API_KEYS"
"""The environment variable with keys, between commas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """What the endpoint serves, to whom, and how much of it. The fields describe each setting."""

    bind: str = setting("127.0.0.1:8000", "HOST:PORT to listen on; beyond loopback only with a key.")
    api_keys: Path | None = setting(None, f"File of API keys, one a line; also ${KEY_VARIABLE}.")
    tls_cert: Path | None = setting(None, "Certificate chain (PEM), to serve https.")
    tls_key: Path | None = setting(None, "Its private key (PEM).")
    fallback: str = setting(
        "none",
        "Without the cloud: 503, or the draft answers alone, and the reply says so.",
        one_of=FALLBACKS,
    )
    model_name: tuple[str, ...] = setting((), "A further name of the model, for clients that insist on one.")
    allow_url_host: tuple[str, ...] = setting(
        (), "HOST or HOST:PORT that pictures may be fetched from; without: none."
    )
    answers: int = setting(
        MAX_OPEN_ANSWERS, "Answers that are decoded at the same time; others wait.", 1, MAX_OPEN_ANSWERS
    )
    concurrency: int = setting(128, "Requests under way, those that wait included; then 429.", 1, 4096)
    longest_answer: int = setting(1024, "Most tokens that a request may ask for.", 1, 4096)
    max_body_mib: int = setting(16, "Largest body.", 1, 256)
    max_megapixels: float = setting(24.0, "Largest picture.", 0.01, 40.0)
    body_timeout_s: float = setting(10.0, "How long a body may take to arrive.", 0.1, 600.0)
    request_timeout_s: float = setting(120.0, "How long an answer may take, its wait included.", 0.1, 3600.0)
    link_silence_s: float = setting(0.6, "Silence of the cloud after which it counts as away.", 0.2, 10.0)


def check_settings(settings: ServeSettings, cloud: str) -> None:
    """Raise ConfigError for settings that contradict each other."""
    if settings.fallback == "draft" and not cloud:
        raise ConfigError("--fallback draft is for a cloud that may be lost; with --local there is none")
