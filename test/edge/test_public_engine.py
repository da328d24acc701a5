"""The public engine without a network: questions, pictures, options, and models that cannot be loaded."""

from __future__ import annotations

import dataclasses
import inspect
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_type_hints

import click
import numpy as np
import pytest
from PIL import Image as PilImage

import vlm_spec_decode as vsd
from test.edge.test_engine import engine as script_engine
from vlm_spec_decode.actions.types import Done, Forward, Turn
from vlm_spec_decode.core.config import settings_of
from vlm_spec_decode.edge import factory
from vlm_spec_decode.edge.api import EngineOptions, as_image
from vlm_spec_decode.edge.factory import EdgeRuntime, EdgeSettings

ROOT = Path(__file__).parents[2]
FRAME = ROOT / "docs" / "images" / "frame.jpg"
SAID = "i see the red chair . turn ( -10 ) forward ( 1.6 ) done ( )"


def engine(text: str = SAID, sees: bool = False) -> vsd.Engine:
    decoder, _, _ = script_engine(text)
    draft = cast(Any, SimpleNamespace(sees=sees))
    return vsd.Engine(EdgeRuntime(decoder, cast(Any, decoder._verifier), draft, ("script", "1")))


def test_an_answer_has_text_and_actions_and_how_it_came_about() -> None:
    with engine() as asked:
        answer = asked.ask("go to the red chair")
    assert str(answer) == answer.text == SAID
    assert answer.actions == (Turn(-10.0), Forward(1.6), Done())
    assert answer.tokens == answer.result.tokens
    assert answer.result.accepted > 0
    assert answer.usage.uplink_bytes == 0


def test_every_action_is_told_once_and_when_it_is_committed() -> None:
    with engine() as asked:
        updates = list(asked.stream("go to the red chair"))
    assert [action for update in updates for action in update.actions] == [Turn(-10.0), Forward(1.6), Done()]
    for update in updates:
        for action in update.actions:
            assert type(action).__name__.lower() in update.text, "never before its text"


def test_free_text_may_say_anything() -> None:
    said = "a chair (red) and dance ( 3 )"
    with engine(said) as asked:
        with pytest.raises(vsd.ActionParseError):
            asked.ask("what is there")
        answer = asked.ask("what is there", free_text=True)
    assert (answer.text, answer.actions) == (said, ())


def test_what_is_wrong_with_a_question_is_told_before_it_is_sent() -> None:
    with engine(sees=True) as asked:
        for error, arguments in (
            (vsd.InstructionError, {"instruction": "  "}),
            (vsd.InstructionError, {"instruction": "go", "image": FRAME, "history": ("",)}),
            (vsd.ImageError, {"instruction": "go", "image": "/no/such.jpg"}),
            (vsd.ImageError, {"instruction": "go", "image": b"nothing"}),
            (vsd.UsageError, {"instruction": "go"}),
            (vsd.ConfigError, {"instruction": "go", "image": FRAME, "scene": "a red chair ahead"}),
        ):
            with pytest.raises(error):
                asked.stream(**arguments)
        assert asked.ask("go", FRAME).text == SAID, "and nothing is open after it"


def test_a_pair_that_does_not_see_is_told_the_scene() -> None:
    with engine() as asked:
        stream = asked.stream("go", scene="a red chair ahead at 2.0 m", history=("turn(10)",))
        assert stream.instruction == "you see a red chair ahead at 2.0 m . go"
        assert stream.observation.history == ("turn(10)",)


def test_a_picture_may_come_in_any_usual_form_and_is_the_same_picture() -> None:
    picture = PilImage.open(FRAME)
    rgb = np.asarray(picture.convert("RGB"))
    data = FRAME.read_bytes()
    usual = (str(FRAME), FRAME, data, bytearray(data), memoryview(data), picture, rgb, as_image(FRAME))
    found = [as_image(source) for source in usual]
    assert {(image.width, image.height) for image in found} == {(found[0].width, found[0].height)}
    pixels = [np.asarray(PilImage.open(io.BytesIO(image.jpeg)), dtype=float) for image in found]
    assert max(np.abs(one - pixels[0]).mean() for one in pixels) < 2.0, "but for what a second JPEG loses"
    grey = as_image(rgb[..., 0])
    assert (grey.width, grey.height) == (found[0].width, found[0].height)
    wide = as_image(np.zeros((100, 2000, 3), np.uint8))
    assert wide.width < 500, "no more than the models use"


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((1, 200_000), np.uint8),
        7,
        object(),
        [[1, 2], [3]],
        PilImage.new("F", (4, 4)),
        "/no/such/file",
        b"",
    ],
)
def test_what_is_no_picture_is_an_image_error(source: Any) -> None:
    with pytest.raises(vsd.ImageError):
        as_image(source)


def test_options_are_those_of_the_settings_and_of_the_command_line() -> None:
    from vlm_spec_decode.cli.service import ask

    settings = {name: each.kind for name, each in settings_of(EdgeSettings).items()}
    assert {name: settings[name] for name in EngineOptions.__annotations__} == get_type_hints(EngineOptions)
    defaults = {field.name: field.default for field in dataclasses.fields(EdgeSettings)}
    shown = {p.name: p.default for p in ask.params if isinstance(p, click.Option)}
    same = set(EngineOptions.__annotations__) & set(shown)
    assert same >= {"strategy", "rule", "temperature", "seed", "max_tokens", "objective", "draft", "target"}
    assert {name: shown[name] for name in same} == {name: defaults[name] for name in same}
    patience = inspect.signature(vsd.Engine.connect).parameters["patience_s"].default
    assert patience is None, "which means that of the settings"
    assert shown["refused_s"] == defaults["refused_s"]


@pytest.mark.parametrize(
    "options",
    [
        {"temprature": 1.0},
        {"temperature": "hot"},
        {"temperature": -1.0},
        {"max_tokens": True},
        {"max_tokens": 2.5},
        {"max_tokens": 0},
        {"strategy": "none"},
        {"rule": "none"},
        {"objective": "none"},
        {"grammar": 1},
        {"threads": None},
    ],
)
def test_options_that_do_not_hold_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(vsd.ConfigError, match=next(iter(options)).replace("_", ".")[:6]):
        vsd.Engine.local(**options)


def test_a_cloud_that_is_not_there_is_told_before_a_model_is_loaded(
    free_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlm_spec_decode.edge.api.bring_up", lambda settings: pytest.fail("too early"))
    with pytest.raises(vsd.CloudUnreachable, match="nobody listens"):
        vsd.Engine.connect(f"tcp://127.0.0.1:{free_tcp_port}", patience_s=0.1)
    for cloud, keys in (("", None), ("http://there", None), ("tcp://127.0.0.1:5557", "/no/such")):
        with pytest.raises(vsd.ConfigError):
            vsd.Engine.connect(cloud, keys=keys)


def test_models_that_are_not_there_are_a_model_error() -> None:
    with pytest.raises(vsd.ModelError):
        vsd.Engine.local(draft="/no/such/model")


def test_a_step_of_the_draft_is_measured_once_before_any_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second measurement, at a new connection, could run beside an answer of the same model."""
    measured: list[object] = []

    def measure(model: object, *_: object) -> tuple[float]:
        measured.append(model)
        return (0.25,)

    monkeypatch.setattr(factory, "load_draft", lambda _settings: "a draft")
    monkeypatch.setattr(factory, "pass_seconds", measure)
    model = factory.DraftModel(EdgeSettings(cloud="tcp://127.0.0.1:1"))
    assert [model.load(), model.load()] == ["a draft"] * 2
    assert (measured, model.step_s) == (["a draft"], 0.25)
    for unmeasured in (EdgeSettings(), EdgeSettings(cloud="tcp://127.0.0.1:1", strategy="autoregressive")):
        factory.DraftModel(unmeasured).load()
    assert len(measured) == 1
