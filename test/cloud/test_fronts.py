"""Which cloud behind a front has which robot; what goes up and down a trunk."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from vlm_spec_decode.cli.main import main
from vlm_spec_decode.cloud.config import FrontConfig, check_front
from vlm_spec_decode.cloud.front import CloudChoice, ranked
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.types import MAX_MESSAGE_BYTES, AnswerRequest, Observation, SamplingParams
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.protocol import messages as wire
from vlm_spec_decode.transport.router import BURST
from vlm_spec_decode.transport.trunk import SPLIT_BYTES, TrunkState, split

CLOUDS = ("tcp://a:1", "tcp://b:1", "tcp://c:1")
PACKER = codec.TokenPacker(3)
OPEN = codec.encode(
    codec.open_message(
        AnswerRequest(1, Observation(None, "go"), SamplingParams(), "autoregressive"), PACKER, 0, ()
    )
)
PING = codec.encode(wire.Ping(1, 1, 0, 0, False))
KEYS = [f"key {number}" for number in range(300)]


def choice(*states: TrunkState) -> CloudChoice:
    made = CloudChoice(CLOUDS)
    made.states = list(states) or [TrunkState.OPEN] * len(CLOUDS)
    return made


def test_a_key_has_one_order_whatever_the_order_of_the_clouds() -> None:
    for key in KEYS:
        names = [CLOUDS[number] for number in ranked(key.encode(), CLOUDS)]
        swapped = CLOUDS[::-1]
        assert names == [swapped[number] for number in ranked(key.encode(), swapped)]


def test_keys_spread_evenly_and_one_cloud_less_moves_its_robots_only() -> None:
    first = {key: CLOUDS[ranked(key.encode(), CLOUDS)[0]] for key in KEYS}
    assert min(Counter(first.values()).values()) > len(KEYS) / 5
    fewer = CLOUDS[:2]
    for key in KEYS:
        assert first[key] == CLOUDS[2] or first[key] == fewer[ranked(key.encode(), fewer)[0]]


def test_fronts_choose_the_same_cloud_without_knowing_of_each_other() -> None:
    one, other = choice(), choice()
    for number, key in enumerate(KEYS):
        assert one.choose(b"1.%d" % number, key, PING) == other.choose(b"2.%d" % number, key, OPEN)
    # In plaintext there are no keys: the robots' own names spread them.
    assert len({one.choose(b"plain %d" % number, "", PING) for number in range(50)}) == len(CLOUDS)


def test_robots_of_a_cloud_that_is_down_go_on_elsewhere_and_return_with_an_answer() -> None:
    made = choice()
    own = made.choose(b"robot", "key", PING)
    assert own is not None
    made.states[own] = TrunkState.DOWN
    other = made.choose(b"robot", "key", PING)
    assert other not in (own, None)
    assert made.moved == 1
    made.states[own] = TrunkState.OPEN
    assert made.choose(b"robot", "key", PING) == other, "its answer is there"
    assert made.choose(b"robot", "key", OPEN) == own
    made.states = [TrunkState.ENDED, TrunkState.DOWN, TrunkState.DOWN]
    assert made.choose(b"robot", "key", PING) is None


def test_a_draining_cloud_keeps_what_it_has_and_gets_nothing_new() -> None:
    made = choice()
    own = made.choose(b"robot", "key", PING)
    assert own is not None
    made.states[own] = TrunkState.DRAINING
    assert made.choose(b"robot", "key", PING) == own
    assert made.choose(b"robot", "key", OPEN) != own
    made.states = [TrunkState.DRAINING] * 3
    assert made.choose(b"late", "key", OPEN) == own, "which says that it drains"


def test_only_an_open_begins_an_answer() -> None:
    params = SamplingParams()
    draft = wire.WireDraft(1, 0, 0, 1, b"\1\0")
    others: list[wire.AnyMessage] = [
        wire.Hello("test", "tokens", "prompt", "grammar", 3),
        wire.ImageChunk(1, 0, 0, b"\4" * 70_000),
        draft,
        wire.WireCorrection(1, 0, 3, 4),
        wire.Close(4, 4),
        wire.Ping(4, 4, 4, 4, True),
    ]
    request = AnswerRequest(1, Observation(None, "go"), params, "autoregressive")
    for version in range(wire.OLDEST_VERSION, wire.VERSION + 1):
        assert codec.begins_answer(codec.encode(codec.open_message(request, PACKER, 0, ()), version))
        assert not any(codec.begins_answer(codec.encode(message, version)) for message in others)
    assert not any(codec.begins_answer(OPEN[:length]) for length in range(5))


def test_messages_are_split_in_order_into_frames_that_fit() -> None:
    sizes = [10] * 600 + [MAX_MESSAGE_BYTES] * 40
    messages = [(b"%d" % number, bytes(size)) for number, size in enumerate(sizes)]
    parts = [list(part) for part in split(messages)]
    assert [message for part in parts for message in part] == messages
    assert max(map(len, parts)) == BURST
    assert max(sum(len(data) for _, data in part) for part in parts) < SPLIT_BYTES + MAX_MESSAGE_BYTES
    assert len(parts) <= 6, "few frames for many messages"
    assert list(split(messages[:0])) == []


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"clouds": "", "insecure": True}, "no clouds"),
        ({"clouds": "tcp://10.0.0.1:5", "insecure": True}, "only loopback"),
        ({"clouds": "tcp://127.0.0.1:5"}, "no keys"),
        ({"clouds": "tcp://127.0.0.1:*", "insecure": True}, "needs its host and its port"),
    ],
)
def test_settings_that_cannot_hold_are_refused_by_name(settings: dict[str, object], wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        check_front(FrontConfig(**settings))  # type: ignore[arg-type]


def test_settings_of_a_front_come_from_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "front.yaml"
    file.write_text("clouds: tcp://127.0.0.1:5558,tcp://127.0.0.1:5559\ninsecure: true\nhttp: off\n")
    assert main(["front", "--config", str(file), "--check-config"]) == 0
    assert "clouds: tcp://127.0.0.1:5558,tcp://127.0.0.1:5559" in capsys.readouterr().out
    file.write_text("cloud: tcp://127.0.0.1:5558\ninsecure: true\n")
    assert main(["front", "--config", str(file), "--check-config"]) == 2
    assert "do you mean 'clouds'?" in capsys.readouterr().err
