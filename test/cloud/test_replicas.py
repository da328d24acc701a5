"""Replicas by Ray on a local cluster of two nodes. Ray is optional; without it one process serves."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks.lib.replicas import until
from vlm_spec_decode.cloud.replicas import pool as replicas
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.transport.in_process import MISSED_POLLS, OrderedInbox


def test_batches_that_overtake_one_another_are_put_in_order() -> None:
    inbox, said = OrderedInbox(), []
    for incarnation, number in ((1, 1), (1, 2), (1, 0), (0, 3), (1, 4)):
        inbox.put(incarnation, number, [(b"robot", b"%d.%d" % (incarnation, number))])
        said += inbox.pop_ready()
    assert [data for _, data in said] == [b"1.0", b"1.1", b"1.2"]
    for _ in range(MISSED_POLLS - 1):
        assert inbox.skip_gap() == []
    assert inbox.skip_gap() == [(b"robot", b"1.4")], "a batch that never comes stops nothing for ever"
    inbox.put(2, 0, [(b"robot", b"2.0")])
    assert inbox.pop_ready() == [(b"robot", b"2.0")], "a new life counts anew"
    inbox.put(1, 1, [(b"robot", b"late")])
    assert inbox.pop_ready() == []


def test_without_ray_replicas_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="Ray, which is optional"):
        replicas.join_cluster("")


class _SlowRay:
    """A cluster without room for the first two looks: enough of Ray's interface for one listener."""

    class exceptions:  # noqa: N801
        class RayError(Exception): ...

        class GetTimeoutError(RayError): ...

        class ActorDiedError(RayError): ...

    def __init__(self) -> None:
        self.looks = 0
        self.kills: list[dict[str, object]] = []
        self.pool: replicas.ReplicaPool | None = None

    def remote(self, **_options: object) -> Callable[[type], Any]:
        return lambda _cls: SimpleNamespace(remote=lambda _make: _Actor())

    def get(self, asked: str, timeout: float) -> object:
        self.looks += 1
        if self.looks <= 2:
            raise self.exceptions.GetTimeoutError
        if asked == "card":
            return asked
        assert self.pool is not None
        self.pool.close()
        return [], None

    def nodes(self) -> list[dict[str, bool]]:
        return [{"Alive": True}, {"Alive": False}]

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 0.0}

    def kill(self, _actor: object, **how: object) -> None:
        self.kills.append(how)


class _Actor:
    card = SimpleNamespace(remote=lambda: "card")
    collect = SimpleNamespace(remote=lambda _timeout_s: "said")


def test_a_replica_that_has_no_place_says_what_the_cluster_has() -> None:
    ray, told = _SlowRay(), threading.Event()
    pool = replicas.ReplicaPool(ray, cast(Any, None), 1, 0, told.set)
    ray.pool = pool
    pool.add()
    assert told.wait(5)
    notice = pool.take_notices()[0]
    assert (notice.kind, notice.detail) == ("waiting", "1 nodes live, 1 dead, 0 CPUs free")


def test_a_replica_that_hangs_while_it_starts_is_started_again() -> None:
    ray, told = _SlowRay(), threading.Event()
    pool = replicas.ReplicaPool(ray, cast(Any, None), 1, 0, told.set, 2 * replicas.PLACED_S)
    ray.pool = pool
    pool.add()
    until(pool._closed.is_set, "the third look", 5)
    assert ray.kills[0] == {"no_restart": False}, "the process ends, and Ray starts another one"
    assert [notice.kind for notice in pool.take_notices()] == ["waiting", "waiting", "up"]


@pytest.mark.slow
@pytest.mark.net
@pytest.mark.timeout(600)
def test_one_of_two_replicas_is_killed_under_load_and_nothing_is_lost(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from benchmarks.lib.replicas import lose_one_of_two

    report = lose_one_of_two(tmp_path, answers=40, robots=6, model="synthetic")
    assert report["killed"]
    assert (report["asked"], report["right"]) == (40, 40)
    assert report["robots_moved"] > 0
    assert report["replicas_in_the_end"] == 2, "a node has joined, and Ray has started the lost one there"
    assert report["again"]["right"] == 20
    assert report["passes"][report["lost"]] > 0, "it serves"
