"""The service's process: what it does about signals."""

from __future__ import annotations

import logging
import signal
from dataclasses import replace
from typing import Any

import pytest

from test.cloud.test_operations import SETTINGS
from vlm_spec_decode.cloud import app
from vlm_spec_decode.cloud.replicas.server import ReplicatedServer
from vlm_spec_decode.core.errors import ConfigError


class Scaled(ReplicatedServer):
    def __init__(self) -> None:
        self.wanted: list[int] = []

    def scale(self, replicas: int) -> None:
        self.wanted.append(replicas)


def test_a_reload_while_the_target_loads_ends_nothing_and_counts_once_it_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, replicas = Scaled(), iter([3, 5])

    def read_replicas() -> int:
        try:
            return next(replicas)
        except StopIteration:
            raise ConfigError("the file is broken") from None

    def build(_config: object) -> tuple[Scaled, None]:
        signal.raise_signal(signal.SIGHUP)
        assert server.wanted == []
        return server, None

    def serve(*_: Any) -> None:
        assert server.wanted == [3]
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)

    before = signal.getsignal(signal.SIGHUP)
    monkeypatch.setattr(app, "build", build)
    monkeypatch.setattr(app, "_serve", serve)
    app.run(SETTINGS, print, read_replicas)
    assert server.wanted == [3, 5]
    assert signal.getsignal(signal.SIGHUP) == before


def test_the_log_begins_before_the_models_are_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else nobody reads how far a load is, and which draft is kept beside the target and why."""

    def build(_config: object) -> tuple[Scaled, None]:
        logging.getLogger("vlm_spec_decode.cloud.own_draft").info("a draft beside the target: yes")
        return Scaled(), None

    monkeypatch.setattr(app, "build", build)
    monkeypatch.setattr(app, "_serve", lambda *_: None)
    app.run(replace(SETTINGS, log_level="info"), print)
    assert "a draft beside the target: yes" in capsys.readouterr().err
    assert logging.getLogger("vlm_spec_decode").handlers == []
