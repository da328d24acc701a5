"""Scenes: what a seed promises, and what a scene file must say."""

import math
from itertools import combinations
from pathlib import Path

import pytest

from vlm_spec_decode.core.errors import SceneError
from vlm_spec_decode.sim.objects import (
    COLOURS,
    KINDS,
    PALETTE,
    SceneObject,
    distance_to_footprint,
    footprint_radius_m,
)
from vlm_spec_decode.sim.scene import Scene, dump_scene, facing, load_scene, random_scene

SEEDS = range(250)
SHIPPED = sorted((Path(__file__).parents[2] / "config" / "scenes").glob("*.yaml"))


def outline(item: SceneObject, step_m: float = 0.04) -> list[tuple[float, float]]:
    """Points all over an object's footprint, found without the code under test."""
    points = []
    cos, sin = math.cos(item.yaw_rad), math.sin(item.yaw_rad)
    for p in item.primitives:
        if not p.solid:
            continue
        assert p.shape in ("box", "sphere", "cylinder", "capsule")
        round_ = p.shape != "box"
        hx, hy = (p.size[0], p.size[0]) if round_ else p.size[:2]
        for i in range(-8, 9):
            for j in range(-8, 9):
                if round_ and math.hypot(i, j) > 8:
                    continue
                x, y = (item.scale * (c + h * k / 8) for c, h, k in ((p.pos[0], hx, i), (p.pos[1], hy, j)))
                points.append((item.x_m + cos * x - sin * y, item.y_m + sin * x + cos * y))
    return points


def test_same_seed_same_scene_and_others_differ() -> None:
    assert all(random_scene(seed) == random_scene(seed) for seed in range(40))
    assert len({random_scene(seed) for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("low_high", [(1, 1), (2, 5), (5, 6)])
def test_counts_and_names(low_high: tuple[int, int]) -> None:
    counts = set()
    for seed in SEEDS:
        scene = random_scene(seed, num_objects=low_high)
        counts.add(len(scene.objects))
        assert len(set(scene.names)) == len(scene.names)
        assert all(o.name == f"{o.colour} {o.kind}" for o in scene.objects)
    assert counts == set(range(low_high[0], low_high[1] + 1))


def test_every_kind_and_colour_occurs() -> None:
    seen = {(o.colour, o.kind) for seed in SEEDS for o in random_scene(seed).objects}
    assert {k for _, k in seen} == set(KINDS)
    assert {c for c, _ in seen} == set(COLOURS)
    assert len(seen) > 0.95 * len(KINDS) * len(COLOURS)


def test_a_robot_passes_between_any_two_things_and_can_start() -> None:
    for seed in range(40):
        scene = random_scene(seed, num_objects=(3, 5))
        assert 5.0 <= scene.length_m <= 8.0
        assert 5.0 <= scene.width_m <= 8.0
        for a, b in combinations(scene.objects, 2):
            assert min(distance_to_footprint(b, x, y) for x, y in outline(a)) >= 0.9
        start = scene.start
        assert scene.clearance_m(start.x_m, start.y_m) >= 0.8
        assert min(abs(facing(start, o.x_m, o.y_m)) for o in scene.objects) <= math.radians(41)


def test_objects_stand_inside_and_doors_in_a_wall() -> None:
    doors = 0
    for seed in range(120):
        scene = random_scene(seed)
        for item in scene.objects:
            gap = min(min(scene.length_m / 2 - abs(x), scene.width_m / 2 - abs(y)) for x, y in outline(item))
            assert gap > -0.01
            if item.kind == "door":
                doors += 1
                assert gap < 0.02
                ahead = (item.x_m + 0.4 * math.cos(item.yaw_rad), item.y_m + 0.4 * math.sin(item.yaw_rad))
                assert scene.clearance_m(*ahead) > 0.3
    assert doors > 25


def test_one_scene_in_three_has_a_pair_that_shares_a_word() -> None:
    def shares(scene: Scene) -> bool:
        return any(a.kind == b.kind or a.colour == b.colour for a, b in combinations(scene.objects, 2))

    share = sum(shares(random_scene(seed)) for seed in range(600)) / 600
    # Binomial with p = 1/3 and n = 600: sigma is 0.019, so a false alarm is a 4-sigma event.
    assert abs(share - 1 / 3) < 0.08


def test_rooms_are_grey_and_objects_are_not() -> None:
    for seed in SEEDS:
        scene = random_scene(seed)
        assert all(max(rgb) - min(rgb) <= 0.1 for rgb in (scene.floor_rgb, scene.wall_rgb))
    assert all(max(rgb) - min(rgb) >= 0.45 for rgb in PALETTE.values())


def test_forbidden_words_do_not_occur() -> None:
    forbid = frozenset({"red chair", "blue", "plant"})
    for seed in SEEDS:
        for item in random_scene(seed, forbid=forbid).objects:
            assert not forbid & {item.name, item.kind, item.colour}


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [
        ({"num_objects": (0, 2)}, "num_objects"),
        ({"num_objects": (4, 2)}, "num_objects"),
        ({"num_objects": (2, 2), "forbid": frozenset(KINDS)}, "forbid"),
    ],
)
def test_impossible_wishes_are_named(kwargs: dict[str, object], word: str) -> None:
    with pytest.raises(SceneError, match=word):
        random_scene(0, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_footprint_distance_matches_sampled_outline(kind: str) -> None:
    item = SceneObject(f"red {kind}", kind, "red", 0.4, -0.3, 0.7, 1.1)
    points = outline(item)
    assert max(math.hypot(x - 0.4, y + 0.3) for x, y in points) <= footprint_radius_m(kind, 1.1) + 1e-9
    for angle in range(0, 360, 30):
        x, y = 0.4 + 2 * math.cos(math.radians(angle)), -0.3 + 2 * math.sin(math.radians(angle))
        sampled = min(math.hypot(x - px, y - py) for px, py in points)
        assert distance_to_footprint(item, x, y) == pytest.approx(sampled, abs=0.02)


def test_scene_file_round_trip(tmp_path: Path) -> None:
    for seed in range(30):
        scene = random_scene(seed)
        dump_scene(scene, tmp_path / "scene.yaml")
        assert load_scene(tmp_path / "scene.yaml") == scene


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_scene_leaves_room_for_the_robot(path: Path) -> None:
    scene = load_scene(path)
    assert scene.clearance_m(scene.start.x_m, scene.start.y_m) >= 0.5


GOOD = "length_m: 6\nwidth_m: 6\n"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("- 1", "scene: must be a mapping"),
        ("length_m: 6", "width_m: missing"),
        (GOOD + "colour: red", "unknown key 'colour'"),
        (GOOD + "width_m: wide", "width_m: must be a number"),
        (GOOD + "width_m: 900", "width_m: must be a number from 2 to 50"),
        (GOOD + "objects: 3", "objects: must be a list"),
        (GOOD + "objects: [{kind: sofa, colour: red, x_m: 0, y_m: 0}]", r"objects\[0\].kind: must be one of"),
        (GOOD + "objects: [{kind: ball, colour: mauve, x_m: 0, y_m: 0}]", r"objects\[0\].colour"),
        (GOOD + "objects: [{kind: ball, colour: red, x_m: 0}]", r"objects\[0\].y_m: missing"),
        (GOOD + "objects: [{kind: ball, colour: red, x_m: 9, y_m: 0}]", r"objects\[0\]: .* outside"),
        (GOOD + "objects: [{kind: ball, colour: red, x_m: 0, y_m: 0, scale: 0}]", r"objects\[0\].scale"),
        (
            GOOD
            + "objects: [{kind: ball, colour: red, x_m: 0, y_m: 0}, "
            + "{kind: ball, colour: red, x_m: 2, y_m: 0}]",
            r"objects\[1\]: a second red ball",
        ),
        (GOOD + "start: {x_m: 7}", "start: lies outside"),
        (GOOD + "start: {heading: 7}", "start: unknown key 'heading'"),
        (GOOD + "floor_rgb: [1, 2]", "floor_rgb"),
        (GOOD + "wall_rgb: [1, 0, red]", "wall_rgb.b"),
        (GOOD + "light: {brightness: 9}", "light.brightness"),
        (GOOD + "light: [", "not YAML"),
    ],
)
def test_bad_scene_file_names_the_key(tmp_path: Path, text: str, key: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(SceneError, match=key) as caught:
        load_scene(tmp_path / "bad.yaml")
    assert "bad.yaml" in str(caught.value)


def test_missing_scene_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match=r"nowhere\.yaml: cannot be read"):
        load_scene(tmp_path / "nowhere.yaml")
