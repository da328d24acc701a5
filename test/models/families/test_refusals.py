"""What a family does not cover is refused when it is loaded, with the family's name and the reason."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from test.models import checkpoints
from test.models.families.cases import CASES
from test.models.families.reference import seen
from vlm_spec_decode.core.errors import ImageError, InstructionError, ModelError
from vlm_spec_decode.edge import ask
from vlm_spec_decode.edge.api import Engine
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.models.engines.torch_loop import VlmModel
from vlm_spec_decode.models.families.base import ImageFeatures
from vlm_spec_decode.models.loader import load_model

Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two families with marks of their own, each made once."""
    found = {name: tmp_path_factory.mktemp(name) / "m" for name in ("smolvlm", "internvl")}
    for name, folder in found.items():
        CASES[name].make(folder)
    return found


@pytest.fixture
def made(folders: dict[str, Path], tmp_path: Path) -> Made:
    """Return a copy of a family's checkpoint, to be spoiled."""
    return lambda name: Path(shutil.copytree(folders[name], tmp_path / "m"))


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    edit(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def assert_refused(folder: Path, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as refused:
        load_model(f"{folder},prompt=bare")
    assert str(refused.value).startswith(f"cannot load {folder.name}: architecture ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "token", "other"),
    [("smolvlm", "<fake_token_around_image>", "<fake>"), ("internvl", "</img>", "</image>")],
)
def test_a_tokenizer_without_a_mark_of_tiles(made: Made, name: str, token: str, other: str) -> None:
    folder = made(name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / file
        path.write_text(path.read_text(encoding="utf-8").replace(json.dumps(token), json.dumps(other)))
    assert_refused(folder, f"architecture '{name}': its tokenizer has no token {token}")


@pytest.mark.parametrize(("name", "tiles", "room"), [("smolvlm", 10, 40), ("internvl", 7, 28)])
def test_more_tiles_than_the_context_holds(made: Made, name: str, tiles: int, room: int) -> None:
    """One position more than the picture may take is enough to load; the prompt's text is told apart."""
    folder = made(name)
    config = folder / "config.json"
    change(config, lambda found: found["text_config"].update(max_position_embeddings=room))
    assert_refused(
        folder, f"'{name}': a picture may take {tiles} tiles of 4 tokens, .* context of {room} holds"
    )
    change(config, lambda found: found["text_config"].update(max_position_embeddings=room + 1))
    model = load_model(f"{folder},prompt=bare")
    with pytest.raises(InstructionError, match=rf"leaves no room in {room + 1} positions"):
        model.open(seen((64, 64))).prefill()
    model.open(seen(None, "go")).prefill()


def test_a_picture_that_is_not_split_needs_room_for_one_tile(made: Made) -> None:
    folder = made("smolvlm")
    change(folder / "config.json", lambda found: found["text_config"].update(max_position_embeddings=40))
    change(folder / "preprocessor_config.json", lambda found: found.update(do_image_splitting=False))
    context = load_model(f"{folder},prompt=bare").open(seen((320, 180), "go"))
    context.prefill()
    assert context.stats.prompt_tokens < 40


def test_a_tokenizer_without_the_image_token(tmp_path: Path) -> None:
    folder = checkpoints.llava(tmp_path / "m")
    change(folder / "config.json", lambda found: found.update(image_token_id=63, image_token_index=63))
    assert_refused(folder, "'llava': its tokenizer has no token 63, the image's placeholder")


def test_a_head_with_fewer_rows_than_the_tokenizer_has_tokens(tmp_path: Path) -> None:
    words = [*checkpoints.WORDS, *(f"more{i}" for i in range(10))]
    folder = checkpoints.llama(tmp_path / "m", words)
    assert_refused(folder, "'llama': its tokenizer knows 70 tokens, more than its head has rows")


def test_image_rows_that_fit_no_placeholder(folders: dict[str, Path]) -> None:
    model = load_model(f"{folders['smolvlm']},prompt=bare")
    assert isinstance(model, VlmModel)
    family, image = model.encoder.family, model.encoder.family.image_token_id or 0
    features = ImageFeatures(torch.zeros(7, 32))
    for ids, count in (((1, image, image, 2), 2), ((1, 2), 0)):
        with pytest.raises(ModelError, match=f"'smolvlm': 7 image rows do not fit {count} placeholders"):
            family.expand_prompt(ids, {}, features)
    assert family.expand_prompt((1, image, 2), {}, features) == (1, *[image] * 7, 2)


def test_a_picture_of_a_shape_that_the_family_cannot_take(tmp_path: Path) -> None:
    """The file is named, if there is one, and what the family takes; one as long as that is taken."""
    folder = CASES["qwen2_vl"].make(tmp_path / "m") or tmp_path / "m"
    long = tmp_path / "long.jpg"
    long.write_bytes(checkpoints.jpeg(404, 2))
    said = "qwen2_vl cannot take a picture of 404 x 2 pixels: the long side may be 200 times the short one"
    with Engine.local(target=f"{folder}", draft=f"{folder}", grammar=False, max_tokens=2) as engine:
        with pytest.raises(ImageError, match=f"^{re.escape(str(long))}: {said}"):
            engine.ask("go", long)
        with pytest.raises(ImageError, match=f"^{said}"):
            engine.ask("go", long.read_bytes())
        assert len(engine.ask("go", checkpoints.jpeg(400, 2), free_text=True).tokens) == 2
    with pytest.raises(ImageError, match=f"^{re.escape(str(long))}: {said}"):
        ask.run(
            ask.AskConfig(
                instruction="go", image=long, settings=EdgeSettings(target=f"{folder}", draft=f"{folder}")
            )
        )


def test_a_picture_that_fills_the_context_is_told_apart_from_a_long_prompt(tmp_path: Path) -> None:
    folder = CASES["llava"].make(tmp_path / "m") or tmp_path / "m"
    change(folder / "config.json", lambda found: found["text_config"].update(max_position_embeddings=30))
    with pytest.raises(
        InstructionError, match=r"of \d+ tokens, 16 of them the picture's, leaves no room in 30"
    ):
        load_model(f"{folder},prompt=bare").open(seen((40, 30))).prefill()
