"""The one loader of settings files, and what follows from a setting."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from vlm_spec_decode.cli import main as cli
from vlm_spec_decode.core.config import (
    Setting,
    check_ranges,
    described,
    digest,
    effective,
    read_config,
    same_as,
    setting,
    settings_of,
)
from vlm_spec_decode.core.errors import ConfigError, SceneError
from vlm_spec_decode.core.options import options
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile, load_hardware, load_link

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Lamp:
    name: str = field(metadata=described("What it is called."))
    rate_hz: float = setting(5.0, "How often it blinks.", 1, 10)
    count: int = setting(3, "How many there are.", 1)
    colour: str = setting("red", "What it looks like.", one_of=("red", "blue"))
    place: Path | None = setting(None, "Where it stands.")
    limit_s: float | None = setting(None, "When it ends.", 0)
    dims: bool = setting(True, "Dim it at night.")
    spots: tuple[int, ...] = setting((4,), "Where it points.")
    secret: int = 0


@dataclass(frozen=True)
class Room:
    colour: str = same_as(Lamp, "colour")


def read(text: str, folder: Path) -> Lamp:
    path = folder / "lamp.yaml"
    path.write_text(text)
    return read_config(Lamp, path)


def test_a_file_gives_a_dataclass_and_the_rest_keeps_its_defaults(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = read("name: a\nrate_hz: 2\nplace: ~/x\nspots: [1, 2]\nlimit_s: 3\n", tmp_path)
    assert found == Lamp("a", 2.0, place=tmp_path / "x", limit_s=3.0, spots=(1, 2))
    assert isinstance(found.rate_hz, float)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\ncolor: red", r"unknown key 'color'; do you mean 'colour'\?"),
        ("name: a\nzzz: 1", "unknown key 'zzz'; known: name, rate_hz, count"),
        ("name: a\nsecret: 1", "unknown key 'secret'"),
        ("rate_hz: 2", "name"),
        ("name: a\nrate_hz: 11", "rate_hz 11.0 is not within 1 to 10"),
        ("name: a\nrate_hz: .nan", "rate_hz nan is not within 1 to 10"),
        ("name: a\nrate_hz: fast", "rate_hz: a number is wanted, not 'fast'"),
        ("name: a\ncount: 0", "count 0 is below 1"),
        ("name: a\ncount: 2.5", "count: Expected `int`, got `float`.*How many there are"),
        ("name: a\ncolour: green", "colour 'green' is none of red, blue"),
        ("name: a\ndims: 1", "dims: Expected `bool`"),
        ("name: a\nplace: 3", "place: Expected a path, got `int`"),
        ("name: a\nspots: [a]", "spots: Expected `int`"),
        ("name: a\nlimit_s: -1", "limit_s -1.0 is below 0"),
        ("- name", "a mapping of settings"),
    ],
)
def test_what_a_file_may_not_say_is_named_with_file_and_key(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        read(text, tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "lamp.yaml"))
    assert "\n" not in str(caught.value)


def test_the_error_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "lamp.yaml"
    path.write_text("nam: a")
    with pytest.raises(SceneError, match="'name'"):
        read_config(Lamp, path, SceneError)


def test_what_holds_is_shown_and_its_digest_follows_every_setting() -> None:
    lamp = Lamp("a", place=Path("/x"))
    assert effective(lamp) == {
        **{"name": "a", "rate_hz": 5.0, "count": 3, "colour": "red", "place": "/x"},
        **{"limit_s": None, "dims": True, "spots": [4]},
    }
    others = [Lamp("b"), Lamp("a", 6.0), Lamp("a", count=4), Lamp("a", dims=False), Lamp("a", spots=(1,))]
    digests = {digest(effective(each)) for each in (lamp, Lamp("a"), *others)}
    assert len(digests) == 7
    assert digest(effective(Lamp("a"))) == digest(effective(Lamp("a", secret=1)))


def test_the_cloud_says_what_holds_and_its_digest(tmp_path, capsys) -> None:
    file = tmp_path / "cloud.yaml"
    file.write_text("insecure: true\nbatch: 7\n")
    assert cli.main(["cloud", "--config", str(file), "--check-config", "--threads", "2"]) == 0
    said = capsys.readouterr().out
    assert "batch: 7" in said
    assert "threads: 2" in said
    assert "grammar: True" in said
    file.write_text("insecure: true\nbatch: 8\n")
    assert cli.main(["cloud", "--config", str(file), "--check-config", "--threads", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] != said.splitlines()[-1]


def test_an_option_has_type_range_default_and_help_of_its_setting() -> None:
    @click.command()
    @options(Lamp)
    def command(**given: object) -> None:
        click.echo(repr(given))

    run = CliRunner().invoke
    found = run(
        command,
        ["--name", "a", "--limit-s", "2", "--no-dims", "--spots", "1", "--spots", "2"],
        standalone_mode=False,
    )
    assert ast.literal_eval(found.output) == {
        **{"name": "a", "rate_hz": 5.0, "count": 3, "colour": "red", "place": None},
        **{"limit_s": 2.0, "dims": False, "spots": (1, 2)},
    }
    for bad in (["--rate-hz", "11"], ["--count", "0"], ["--colour", "green"], ["--limit-s", "-1"]):
        assert run(command, ["--name", "a", *bad]).exit_code == 2
    text = " ".join(run(command, ["--help"]).output.split())
    for each in ("How often it blinks.", "[default: 5.0; 1<=x<=10]", "[red|blue]", "Do not dim it at night."):
        assert each in text


def test_a_shared_setting_is_one() -> None:
    assert settings_of(Room)["colour"] == settings_of(Lamp)["colour"]
    assert Room().colour == Lamp("a").colour
    with pytest.raises(ConfigError, match="colour 'green' is none of red, blue"):
        check_ranges(Room("green"))


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        *[("speed_mps", "m/s"), ("turn_radps2", "rad/s²"), ("wait_s", "s"), ("rtt_ms", "ms"), ("count", "")],
        *[("key_messages_per_s", "1/s"), ("kv_mib", "MiB")],
    ],
)
def test_the_unit_is_what_the_name_ends_with(name: str, unit: str) -> None:
    assert Setting(name, 1.0, "x").unit == unit


def test_every_setting_says_something() -> None:
    for kind in (LinkProfile, HardwareProfile):
        for each in settings_of(kind).values():
            assert each.description.endswith(".")


def test_profiles_are_known_by_name_and_by_path(tmp_path: Path) -> None:
    assert load_link("wifi").name == "wifi"
    assert load_hardware("go2_a100").draft_ms == 72
    file = tmp_path / "mine.yaml"
    file.write_text("rtt_ms: 3\n")
    assert load_link(str(file)) == LinkProfile("mine", 3.0)
    with pytest.raises(ConfigError, match=r"no link 'wify'; known: .*wifi"):
        load_link("wify")


def test_the_page_of_options_is_what_the_commands_take(capsys) -> None:
    assert cli.main(["options-page"]) == 0
    assert (ROOT / "docs" / "options.md").read_text() == capsys.readouterr().out, (
        "run: vsd options-page > docs/options.md"
    )
