"""Text that is no text, and YAML that is no YAML: named wherever they come in."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_spec_decode.bags.questions import read_instructions
from vlm_spec_decode.cloud.config import read_file
from vlm_spec_decode.core import internal_error
from vlm_spec_decode.core.config import from_mapping
from vlm_spec_decode.core.config import read_mapping as load_yaml
from vlm_spec_decode.core.errors import ConfigError, InstructionError, UsageError
from vlm_spec_decode.core.profiles import LinkProfile
from vlm_spec_decode.core.types import text_problem
from vlm_spec_decode.edge.mission_loop import check_instruction
from vlm_spec_decode.mission.queue import MissionRequest
from vlm_spec_decode.sim.scene import read

BAD = {
    "latin1": b"name: gehe zur T\xfcr\n",
    "binary": bytes(range(256)),
    "unclosed": b"a: [1, 2",
    "half": b'name: "\\uD800"',
    "date": b"when: 2024-13-45",
    "deep": b"[" * 5000,
    "key": b"? [1, 2]\n: 3",
    "tag": b"!!python/object/apply:os.system [true]",
    "list": b"3",
    "nothing": b"",
}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ch\udcffair", "byte 0xff at character 3"),
        ("\ud83d", r"U\+D83D at character 1"),
        ("walk \ufffd", r"U\+FFFD"),
        ("", "empty"),
    ],
)
def test_an_instruction_that_is_no_text_is_named(text: str, said: str) -> None:
    with pytest.raises(InstructionError, match=said):
        check_instruction(text)
    with pytest.raises(InstructionError, match=said):
        MissionRequest(instruction=text)


def test_half_a_sign_in_a_request_is_refused() -> None:
    with pytest.raises(InstructionError, match="no text"):
        MissionRequest.from_json('{"instruction": "walk \\ud800"}')


@pytest.mark.parametrize("text", ["", "plain", "Tür", "椅子", "\U0001f916"])
def test_text_of_any_language_is_text(text: str) -> None:
    assert text_problem(text) == ""


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("reader", [load_yaml, read, read_file, read_instructions])
def test_a_file_that_holds_no_settings_is_one_line_with_its_name(name: str, reader, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / f"{name}.yaml"
    path.write_bytes(BAD[name])
    with pytest.raises(UsageError, match=f"{name}.yaml") as caught:
        reader(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", [load_yaml, read, read_file, read_instructions])
def test_what_is_no_file_is_named(reader, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for path in (tmp_path, tmp_path / "none.yaml", tmp_path / "a\0b.yaml"):
        with pytest.raises(UsageError):
            reader(path.with_suffix(".yaml") if path == tmp_path else path)


def test_a_mark_at_the_beginning_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "marked.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert load_yaml(path) == {"a": 1}


@pytest.mark.parametrize("value", ["20", True, [1], None, float("nan")])
def test_a_number_of_a_profile_is_a_number(value: object) -> None:
    with pytest.raises(ConfigError, match="rtt_ms: a number is wanted"):
        from_mapping(LinkProfile, {"name": "x", "rtt_ms": value})
    assert from_mapping(LinkProfile, {"name": "x", "rtt_ms": 20}).rtt_ms == 20
    with pytest.raises(ConfigError, match="unknown key '3'"):
        from_mapping(LinkProfile, {"name": "x", 3: 4, "rtt_ms": 1})


def test_a_fault_that_nobody_named_is_one_line_and_keeps_its_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        try:
            return {}["a\nb"]
        except KeyError as error:
            return internal_error.describe_internal_error(error)

    line = fail()
    assert line.startswith("KeyError: ")
    assert "\n" not in line
    path = Path(line.partition("traceback in ")[2].rstrip(")"))
    assert "Traceback" in path.read_text()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv(internal_error.SHOW, "1")
    fail()
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setattr(internal_error, "scratch_folder", lambda _: None)
    assert "VSD_TRACEBACK=1" in fail()
