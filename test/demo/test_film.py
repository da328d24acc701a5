"""The film of a run: what it says at each time, and that it fits the page."""

import math

import pytest
from PIL import Image as PilImage

from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.demo.film import Story, first_motion_s, plan_of, save_film
from vlm_spec_decode.demo.report import MissionStep
from vlm_spec_decode.demo.timeline import ANSWERING, MOVING, UPLOADING, WAITING, Span, Timeline
from vlm_spec_decode.sim.ground_truth import PathRecorder
from vlm_spec_decode.sim.scene import random_scene
from vlm_spec_decode.sim.world import World

STEPS = (
    MissionStep(1, text="i see a box . turn ( 20 ) forward ( 0.5 )", actions=("turn(20)", "forward(0.5)")),
    MissionStep(2, text="done ( )", actions=("done()",)),
)
SPANS = (
    Span(WAITING, 1, 0.0, 1.0), Span(UPLOADING, 1, 0.0, 0.2), Span(ANSWERING, 1, 0.2, 1.0),
    Span(MOVING, 1, 1.0, 3.0), Span(WAITING, 2, 3.0, 4.0), Span(ANSWERING, 2, 3.0, 3.5),
)  # fmt: skip
STORY = Story("walk to the box", STEPS, Timeline(SPANS, 4.0))


@pytest.mark.parametrize(
    ("at_s", "state", "number"),
    [
        (0.1, "answers", None),
        (0.5, "answers", None),
        (2.0, "walks", 1),
        (3.2, "answers", 1),
        (3.7, "waits", 2),
        (4.0, "done", 2),
    ],
)
def test_it_tells_what_is_known_at_a_time(at_s, state, number):
    told, step = STORY.at(at_s)
    assert (told, step and step.number) == (state, number)


def test_a_plan_leads_where_its_actions_lead():
    *_, end = plan_of(STEPS[0], Pose2D(1.0, 2.0, 0.0))
    assert (end.x_m, end.y_m) == pytest.approx(
        (1.0 + 0.5 * math.cos(math.radians(20)), 2.0 + 0.5 * math.sin(math.radians(20)))
    )
    assert STORY.moves_of(STEPS[0]) == (1.0, 3.0)
    assert STORY.moves_of(STEPS[1])[1] == -math.inf, "it never moves"


@pytest.mark.sim
def test_a_film_is_written_from_the_first_word_to_the_end(tmp_path):
    scene = random_scene(3)
    world, record = World(scene), PathRecorder()
    for _ in range(60):
        record.record(world)
        world.command(0.3 if world.time_s > 1.5 else 0.0, 0.0, 0.0)
        world.step(0.1)
    truth = record.finish(world)
    assert 1.4 < first_motion_s(truth) - truth.path[0][0] < 2.2
    save_film(scene, truth, STORY, tmp_path / "run.gif", frames=3)
    with PilImage.open(tmp_path / "run.gif") as film:
        # Three pictures; the last is held, which the file may say by one of a longer duration.
        assert film.n_frames >= 3
        assert film.width <= 960
        film.seek(film.n_frames - 1)
    assert (tmp_path / "run.gif").stat().st_size < 3_000_000
