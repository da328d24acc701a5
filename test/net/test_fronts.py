"""Fronts over real sockets: several at one address, replaced under load, with one cloud or several behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import zmq

from test.net.test_service import PATIENT_S, StepwiseModel, eventually, receive
from test.net.test_sockets import CLOCK, HELLO, IMAGE, decode, edge, own_answer
from test.tables import POOR_DRAFT, TARGET, TableModel
from vlm_spec_decode.cli.main import main
from vlm_spec_decode.cloud.front import FrontServer, ranked
from vlm_spec_decode.cloud.protocol import ServerProtocol
from vlm_spec_decode.cloud.server import CloudServer
from vlm_spec_decode.core.errors import CloudBusy, CloudError, CloudUnreachable
from vlm_spec_decode.core.types import AnswerRequest, Commit, Observation, SamplingParams
from vlm_spec_decode.edge.protocol_timing import ProtocolTiming
from vlm_spec_decode.edge.verifier_remote import RemoteVerifier
from vlm_spec_decode.transport import keys
from vlm_spec_decode.transport.access import KeyLimits
from vlm_spec_decode.transport.dealer import DealerLink
from vlm_spec_decode.transport.router import RouterLink
from vlm_spec_decode.transport.trunk import LOST_S, Trunk, TrunkLink, TrunkState

pytestmark = pytest.mark.net

PARAMS = SamplingParams(temperature=1.0, max_tokens=40, seed=3)
TIMING = ProtocolTiming(ping_s=0.1, give_up_s=PATIENT_S, busy_s=PATIENT_S, switch_cloud_s=PATIENT_S / 2)


@pytest.fixture
def key_folder(tmp_path: Path) -> Path:
    keys.generate(tmp_path)
    return tmp_path


@contextmanager
def running(server: CloudServer | FrontServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield
    finally:
        server.stop()
        thread.join(timeout=PATIENT_S)
        assert not thread.is_alive()


@contextmanager
def cloud_behind(
    folder: Path | None, target: TableModel | None = None, bind: str = "tcp://127.0.0.1:*"
) -> Iterator[CloudServer]:
    target = target or StepwiseModel(TARGET)
    link = TrunkLink(bind, keys.cloud_keys(folder) if folder else None, CLOCK)
    server = CloudServer(link, ServerProtocol(target.card, "grammar"), target, CLOCK, TableModel(POOR_DRAFT))
    server.protocol.owner_of = link.owner_of
    with running(server):
        yield server


@contextmanager
def front(
    folder: Path | None,
    *clouds: CloudServer,
    bind: str = "tcp://127.0.0.1:*",
    limits: KeyLimits | None = None,
) -> Iterator[FrontServer]:
    own = keys.cloud_keys(folder) if folder else None
    link = RouterLink(bind, own, limits, CLOCK, shares_port=True)
    server = FrontServer(link, [Trunk(cloud.address, own, CLOCK) for cloud in clouds], CLOCK)
    with running(server):
        eventually(lambda: server.choice.states == [TrunkState.OPEN] * len(clouds))
        yield server


@contextmanager
def robot(address: str, folder: Path, timing: ProtocolTiming = TIMING) -> Iterator[RemoteVerifier]:
    verifier = RemoteVerifier(DealerLink(address, keys.edge_keys(folder), CLOCK), HELLO, CLOCK, timing)
    try:
        verifier.connect(timeout_s=PATIENT_S)
        yield verifier
    finally:
        verifier.disconnect()


def begin(verifier: RemoteVerifier, answer: int = 1) -> None:
    verifier.open(AnswerRequest(answer, Observation(IMAGE, "go"), PARAMS, "autoregressive"))


@pytest.mark.parametrize("has_keys", [True, False])
def test_a_front_changes_no_token_and_carries_images(key_folder: Path, has_keys: bool) -> None:
    folder = key_folder if has_keys else None
    with (
        cloud_behind(folder, TableModel(TARGET)) as cloud,
        front(folder, cloud) as one,
        edge(one.address, folder, give_up_s=PATIENT_S) as verifier,
    ):
        verifier.connect(timeout_s=PATIENT_S)
        for answer, name in enumerate(("autoregressive", "speculative", "hybrid", "colocated"), start=1):
            params = SamplingParams(temperature=1.0, max_tokens=20, seed=answer)
            assert decode(verifier, name, params, answer, IMAGE) == own_answer(params)
        assert cloud.protocol.stats.image_hits == 3, "the image came once"
        assert cloud.protocol.peers == 1
        eventually(lambda: one.carried["up"] == cloud.protocol.stats.messages)
        assert one.carried["down"] >= cloud.protocol.stats.commits > 4
        assert one.drops()["unroutable"] == 0


def test_fronts_share_an_address_and_a_robot_goes_on_by_the_other_one(key_folder: Path) -> None:
    """In the middle of an answer, which the cloud goes on with: it is not opened again."""
    with ExitStack() as stack:
        cloud = stack.enter_context(cloud_behind(key_folder))
        fronts = [stack.enter_context(front(key_folder, cloud))]
        address = fronts[0].address
        fronts.append(stack.enter_context(front(key_folder, cloud, bind=address)))
        assert fronts[1].address == address
        verifier = stack.enter_context(robot(address, key_folder))
        begin(verifier)
        said = receive(verifier, 5)
        present = next(each for each in fronts if len(each.choice))
        present.drain()
        said = receive(verifier, 40, said)
        assert tuple(said) == own_answer(PARAMS)
        assert cloud.protocol.stats.opened == 1
        assert all(len(each.choice) == 1 for each in fronts)
        assert not present.is_ready
        # A third one takes the drained one's place, and everybody goes on by it when the second goes, too.
        fronts.append(stack.enter_context(front(key_folder, cloud, bind=address)))
        begin(verifier, 2)
        said = receive(verifier, 5)
        fronts[1].drain()
        assert tuple(receive(verifier, 40, said)) == own_answer(PARAMS)
        assert cloud.protocol.stats.opened == 2


def test_many_robots_go_on_when_a_front_is_replaced(key_folder: Path) -> None:
    with ExitStack() as stack:
        cloud = stack.enter_context(cloud_behind(key_folder))
        fronts = [stack.enter_context(front(key_folder, cloud))]
        fronts.append(stack.enter_context(front(key_folder, cloud, bind=fronts[0].address)))
        robots = [stack.enter_context(robot(fronts[0].address, key_folder)) for _ in range(6)]
        for verifier in robots:
            begin(verifier)
        said = [receive(verifier, 3) for verifier in robots]
        fronts[0].drain()
        for verifier, before in zip(robots, said, strict=True):
            assert tuple(receive(verifier, 40, before)) == own_answer(PARAMS)
        assert len(fronts[1].choice) == 6
        assert cloud.protocol.stats.opened == 6


def _own_first(clouds: tuple[CloudServer, CloudServer], folder: Path) -> tuple[CloudServer, CloudServer]:
    """Return the clouds, the one first that the edge's key is given to."""
    own = keys.edge_keys(folder).public
    first, second = ranked(own, [cloud.address for cloud in clouds])
    return clouds[first], clouds[second]


@pytest.mark.parametrize("end", ["stop", "drain"])
def test_robots_stick_to_a_cloud_by_key_until_it_goes(key_folder: Path, end: str) -> None:
    """All robots of a key, by any front. Of a cloud that ends the answers go on at the other one."""
    with ExitStack() as stack:
        clouds = tuple(stack.enter_context(cloud_behind(key_folder)) for _ in range(2))
        fronts = [stack.enter_context(front(key_folder, *clouds))]
        fronts.append(stack.enter_context(front(key_folder, *clouds[::-1], bind=fronts[0].address)))
        own, other = _own_first((clouds[0], clouds[1]), key_folder)
        robots = [stack.enter_context(robot(fronts[0].address, key_folder)) for _ in range(5)]
        for verifier in robots:
            begin(verifier)
        said = [receive(verifier, 3) for verifier in robots]
        assert (own.protocol.stats.opened, other.protocol.stats.opened) == (5, 0)
        owners = {own.protocol.owner_of(peer) for peer in {key[0] for key in own.protocol.requests}}
        assert owners == {keys.edge_keys(key_folder).public}
        getattr(own, end)()
        for verifier, before in zip(robots, said, strict=True):
            assert tuple(receive(verifier, 40, before)) == own_answer(PARAMS)
            verifier.close()
        assert other.protocol.stats.opened == (5 if end == "stop" else 0)
        for verifier in robots:
            assert decode(verifier, "autoregressive", PARAMS, 2) == own_answer(PARAMS)
        assert other.protocol.stats.opened >= 5


def test_a_robot_without_a_cloud_is_asked_to_come_again(key_folder: Path) -> None:
    impatient = ProtocolTiming(give_up_s=PATIENT_S, busy_s=1.5)
    with (
        cloud_behind(key_folder) as cloud,
        front(key_folder, cloud) as one,
        robot(one.address, key_folder, impatient) as verifier,
    ):
        begin(verifier)
        said = receive(verifier, 3)
        address = cloud.address
        cloud.stop()
        with pytest.raises(CloudBusy, match="no_cloud"):
            receive(verifier, 40, said)
        assert one.drops()["no_cloud"] > 0
        with cloud_behind(key_folder, bind=address):
            assert _decode_patiently(verifier) == own_answer(PARAMS)


def _decode_patiently(verifier: RemoteVerifier) -> tuple[int, ...]:
    """Ask until there is a cloud again."""
    until_s = CLOCK.now() + PATIENT_S
    for answer in range(2, 1000):
        try:
            return decode(verifier, "autoregressive", PARAMS, answer)
        except CloudBusy:
            assert CLOCK.now() < until_s
    raise AssertionError("no answer")


def test_a_robots_key_opens_no_trunk(key_folder: Path) -> None:
    own = keys.edge_keys(key_folder)
    with cloud_behind(key_folder) as cloud:
        secret = keys.cloud_keys(key_folder).secret
        pairs = [(own.public, own.secret), (own.cloud_public, secret), None]
        lines = [zmq.Context.instance().socket(zmq.DEALER) for _ in pairs]
        try:
            for line, pair in zip(lines, pairs, strict=True):
                if pair:
                    line.curve_publickey, line.curve_secretkey = pair
                    line.curve_serverkey = own.cloud_public
                line.connect(cloud.address)
                line.send(b"\x93\x01\x00\x90")
            assert lines[1].poll(1000 * PATIENT_S), "the cloud's own key does"
            assert [line.poll(1000) for line in lines] == [0, zmq.POLLIN, 0]
        finally:
            for line in lines:
                line.close(0)


def test_a_front_keeps_the_limits_of_keys(key_folder: Path) -> None:
    limits = KeyLimits(messages_per_s=0.01, burst_s=100.0)
    with cloud_behind(key_folder) as cloud, front(key_folder, cloud, limits=limits) as one:
        with edge(one.address, key_folder, give_up_s=2.0) as verifier:
            verifier.connect(timeout_s=PATIENT_S)
            with pytest.raises(CloudError):
                decode(verifier, "autoregressive", PARAMS, 1)
        assert one.drops()["too_fast"] > 0
        (key_folder / "authorized" / "edge.key").unlink()
        with (
            edge(one.address, key_folder, give_up_s=2.0) as verifier,
            pytest.raises(CloudUnreachable, match="does not know our key"),
        ):
            verifier.connect(timeout_s=4.0)


def test_what_is_no_frame_is_counted_and_a_silent_cloud_counts_as_down() -> None:
    link = TrunkLink("tcp://127.0.0.1:*", None, CLOCK)
    line = zmq.Context.instance().socket(zmq.DEALER)
    line.connect(link.address)
    trunk = Trunk(link.address, None, CLOCK)
    try:
        for junk in (b"", b"\xff" * 9, b"\x93\x02\x00\x90", b"\x93\x01\x00\x91\x92\xc4\x01a\xa1b"):
            line.send(junk)
        seen: list[tuple[bytes, bytes]] = []
        until_s = CLOCK.now() + PATIENT_S
        while link.dropped["malformed"] < 4 or trunk.state is not TrunkState.OPEN:
            assert CLOCK.now() < until_s
            trunk.flush()
            seen += link.poll(0.05)
            assert list(trunk.receive()) == []
        assert seen == []
        link.send(b"nobody", b"data")
        assert link.unroutable == 1
        trunk.add((b"robot", "its key", b"up"))
        trunk.flush()
        while not seen:
            assert CLOCK.now() < until_s
            seen += link.poll(0.05)
        assert seen == [(b"robot", b"up")]
        assert (link.owner_of(b"robot"), link.owner_of(b"another")) == (b"its key", b"another")
        link.send(b"robot", b"down")
        link.announce_drain()
        heard: list[tuple[bytes, bytes]] = []
        while not heard:
            assert CLOCK.now() < until_s
            list(link.poll(0.05))
            heard += trunk.receive()
        assert (heard, trunk.state) == ([(b"robot", b"down")], TrunkState.DRAINING)
        CLOCK.sleep(LOST_S + 0.1)
        assert trunk.state is TrunkState.DOWN
    finally:
        line.close(0)
        link.close()
        trunk.close()


def test_commits_come_in_order_by_whichever_front(key_folder: Path) -> None:
    """A front that is drained again and again: every commit begins where the one before ended."""
    with ExitStack() as stack:
        cloud = stack.enter_context(cloud_behind(key_folder))
        first = stack.enter_context(front(key_folder, cloud))
        address, present = first.address, first
        verifier = stack.enter_context(robot(address, key_folder))
        for answer in range(1, 5):
            verifier.open(AnswerRequest(answer, Observation(None, "go"), PARAMS, "autoregressive"))
            said: list[int] = []
            while len(said) < 40:
                event = verifier.wait(PATIENT_S)
                assert isinstance(event, Commit)
                assert event.start == len(said)
                said += event.tokens
                if len(said) == 10:
                    following = stack.enter_context(front(key_folder, cloud, bind=address))
                    present.drain()
                    present = following
            assert tuple(said) == own_answer(PARAMS)
            verifier.close()


@contextmanager
def command(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """Run a command that serves until a signal; yield it and what its ready line says."""
    program = [sys.executable, "-m", "vlm_spec_decode.cli", *arguments, "--json"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            assert ready["event"] == "ready"
            yield process, ready
        finally:
            process.kill()


def test_robots_of_a_front_that_is_killed_go_on_by_the_other_one(key_folder: Path) -> None:
    """It sends nothing more and closes nothing in order; the cloud's answers are not opened again."""
    with ExitStack() as stack:
        cloud = stack.enter_context(cloud_behind(key_folder))
        settings = ("--keys", str(key_folder), "--clouds", cloud.address, "--http", "off")
        process, found = stack.enter_context(command("front", "--bind", "tcp://127.0.0.1:*", *settings))
        address = found["address"]
        robots = [stack.enter_context(robot(address, key_folder)) for _ in range(3)]
        stack.enter_context(command("front", "--bind", address, *settings))
        for verifier in robots:
            begin(verifier)
        said = [receive(verifier, 3) for verifier in robots]
        process.kill()
        for verifier, before in zip(robots, said, strict=True):
            assert tuple(receive(verifier, 40, before)) == own_answer(PARAMS)
        assert cloud.protocol.stats.opened == 3


def test_the_commands_serve_a_robot_tell_of_it_and_end_at_a_signal(
    key_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--keys", str(key_folder), "--bind", "tcp://127.0.0.1:*")
    with (
        command("cloud", "--fronts", "--http", "off", *where) as (_, behind),
        command("front", "--clouds", behind["address"], "--http", "127.0.0.1:*", *where) as (process, found),
    ):
        image = Path(__file__).parents[2] / "docs" / "images" / "frame.jpg"
        asked = ["--instruction", "walk to the blue box", "--image", str(image), "--keys", str(key_folder)]
        assert main(["ask", "--json", "--cloud", found["address"], *asked]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["token_ids"]
        for path, wanted in (("healthz", "ok"), ("readyz", "ok"), ("metrics", "vsd_front_clouds_open 1.0")):
            with urllib.request.urlopen(f"{found['http']}/{path}", timeout=PATIENT_S) as answer:
                assert wanted in answer.read().decode()
        process.send_signal(signal.SIGTERM)
        rest, trouble = process.communicate(timeout=PATIENT_S)
        assert json.loads(rest)["event"] == "ended"
        assert (process.returncode, trouble) == (0, "")
