"""A node's engine comes up again at the cloud that it spoke with last."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

pytest.importorskip("rclpy", reason="the source reads a node's parameters")

from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.mission import connection

pytest.importorskip("rclpy", reason="the source reads a node's parameters")


@dataclass
class Runtime:
    """One that has failed over to the second of its clouds."""

    clouds: str = "tcp://b:5557,tcp://a:5557"
    engine: object = None
    is_closed: bool = False

    def close(self) -> None:
        self.is_closed = True


def test_of_two_clouds_the_one_that_answered_last_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, runtime = [], Runtime()

    def bring_up(settings: EdgeSettings, draft: object) -> Runtime:
        asked.append(settings.cloud)
        return runtime

    monkeypatch.setattr(connection, "bring_up", bring_up)
    monkeypatch.setattr(connection.DraftModel, "load", lambda _: None)
    source = connection.EdgeEngineSource(EdgeSettings(cloud="tcp://a:5557,tcp://b:5557"))
    source.connect()
    source.connect()
    assert runtime.is_closed
    assert asked == ["tcp://a:5557,tcp://b:5557", runtime.clouds]
