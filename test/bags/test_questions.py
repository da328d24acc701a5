"""Which frames are asked about, with what, and what counts as right."""

import re

import pytest

from test.bags.walks import Walk, jpeg, picture, plain_walk
from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.bags.events import Events, Topics
from vlm_spec_decode.bags.questions import AskPlan, Executed, TimedInstruction, questions, read_instructions
from vlm_spec_decode.bags.reader import open_bag
from vlm_spec_decode.bags.score import (
    agrees,
    compared,
    declines,
    goes_the_same_way,
    mean,
    motion_error,
    planned,
    rate,
)
from vlm_spec_decode.core.errors import BagError


def asked(path, plan=None):
    source = open_bag(path)
    topics = Topics().choose(source.topics)
    found = list(questions(Events(source, topics), plan or AskPlan()))
    source.close()
    return found


def test_frames_are_asked_about_from_the_instruction_on_with_the_motion_after_them(tmp_path):
    found = asked(plain_walk(tmp_path / "walk"))
    assert [q.at_s for q in found] == pytest.approx([1.0, 2.0, 3.0, 4.0, 5.0], abs=0.01)
    assert {q.observation.instruction for q in found} == {"go to the red chair"}
    assert found[0].executed.forward_m == pytest.approx(1.0, abs=0.05)
    assert found[0].executed.turn_deg == pytest.approx(0.0, abs=0.01)
    assert found[3].executed.turn_deg == pytest.approx(0.6 * 57.3 * 1.95, rel=0.05)
    assert found[3].executed.forward_m == 0.0


def test_an_instruction_may_be_given_or_come_from_a_file(tmp_path):
    path = plain_walk(tmp_path / "walk")
    given = asked(path, AskPlan("sit", every_s=2.0))
    assert [(q.at_s, q.observation.instruction) for q in given] == [(0.0, "sit"), (2.0, "sit"), (4.0, "sit")]
    spoken = (TimedInstruction(2.0, "turn left", ("turn(90)",)), TimedInstruction(4.0, "stop"))
    found = asked(path, AskPlan(spoken=spoken))
    assert [q.observation.instruction for q in found][1:] == ["turn left", "turn left", "stop", "stop"]
    assert [q.actions for q in found][1:] == [("turn(90)",), ("turn(90)",), None, None]
    assert len(asked(path, AskPlan("sit", limit=2))) == 2


def test_recorded_answers_are_asked_again_as_they_were(tmp_path):
    walk = Walk(tmp_path / "walk")
    walk.text(0.0, "go to the box")
    for tick in range(40):
        walk.compressed(tick / 10)
    walk.answer(5.0, 1.2, "go to the box", actions=("turn(20)", "forward(1)"), token_ids=(5, 6))
    walk.answer(6.0, 3.1, "go to the box", ("turn(20)", "forward(1)"))
    walk.answer(7.0, 99.0, "of a frame that is not in the bag")
    walk.close()
    first, second = asked(tmp_path / "walk")
    assert first.at_s == pytest.approx(1.2)
    assert (first.actions, first.token_ids) == (("turn(20)", "forward(1)"), (5, 6))
    assert second.observation.history == ("turn(20)", "forward(1)")


@pytest.mark.parametrize(("width", "found"), [(40, 40), (None, 448), (0, 448), (-7, 448), (10**9, 448)])
def test_a_recorded_answer_is_asked_again_about_the_picture_that_was_sent(tmp_path, width, found):
    walk = Walk(tmp_path / "again")
    for tick in range(20):
        walk.compressed(tick / 10)
    more = {} if width is None else {"image_width": width, "image_digest": "ab" * 32}
    walk.answer(5.0, 1.2, "go to the box", **more)
    walk.close()
    (question,) = asked(tmp_path / "again")
    image = question.observation.image
    assert image.width == min(found, 64)
    assert image.height == round(48 * image.width / 64)


def test_a_label_counts_more_than_what_was_answered_and_motion_from_the_answer_on(tmp_path):
    walk = Walk(tmp_path / "walk")
    for tick in range(60):
        walk.compressed(tick / 10)
        walk.twist(tick / 10, vx=0.0 if tick < 20 else 0.5)
    walk.label(1.0, 1.0, "go to the box", actions=("forward(1)",), text="ok . forward ( 1.0 )")
    walk.answer(2.0, 1.0, "go to the box", actions=("turn(20)",), token_ids=(5,))
    walk.answer(3.0, 2.5, "go to the box", ("turn(20)",))
    walk.close()
    first, second = asked(tmp_path / "walk")
    assert (first.at_s, first.actions, first.text) == (
        pytest.approx(1.0),
        ("forward(1)",),
        "ok . forward ( 1.0 )",
    )
    assert first.token_ids == (5,)
    assert first.executed.forward_m == pytest.approx(1.0, abs=0.11)
    assert (second.actions, second.text) == (("done()",), "")


@pytest.mark.parametrize("label_at_s", [0.5, 3.0])
def test_labels_without_answers_are_asked_about_wherever_they_stand_in_the_bag(tmp_path, label_at_s):
    walk = Walk(tmp_path / "walk")
    walk.compressed(0.0)
    if label_at_s < 1.0:
        walk.label(label_at_s, 1.0, "sit", actions=("sit()",))
    for tick in range(1, 30):
        walk.compressed(tick / 10)
    if label_at_s > 1.0:
        walk.label(label_at_s, 1.0, "sit", actions=("sit()",))
    walk.close()
    (only,) = asked(tmp_path / "walk")
    assert (only.at_s, only.actions) == (pytest.approx(1.0), ("sit()",))


def test_the_page_turns_a_data_set_into_a_bag_with_labels(tmp_path, monkeypatch, request):
    page = (request.config.rootpath / "docs" / "bags.md").read_text()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(jpeg(picture(), "PNG"))
    rows = "picture,time_s,instruction,actions\na.png,1.25,go left,turn(20) forward(1)\na.png,2,sit,sit()\n"
    (tmp_path / "data" / "rows.csv").write_text(rows)
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1), {})
    first, second = asked(tmp_path / "walks" / "dataset")
    assert (first.observation.instruction, first.actions) == ("go left", ("turn(20)", "forward(1)"))
    assert (second.at_s, second.actions) == (pytest.approx(0.75), ("sit()",))


def test_instruction_files_say_where_they_are_wrong(tmp_path):
    path = tmp_path / "said.csv"
    path.write_text("time_s,instruction,actions\n3,sit,sit()\n1.5,go left,turn(90) forward(1.0)\n")
    assert read_instructions(path) == (
        TimedInstruction(1.5, "go left", ("turn(90)", "forward(1)")),
        TimedInstruction(3.0, "sit", ("sit()",)),
    )
    (tmp_path / "said.yaml").write_text("- {time_s: 0, instruction: hello}\n")
    assert read_instructions(tmp_path / "said.yaml") == (TimedInstruction(0.0, "hello"),)
    (tmp_path / "said.yaml").write_text("- {time_s: 0, instruction: hi, actions: ['turn(20)', 'done()']}\n")
    assert read_instructions(tmp_path / "said.yaml") == (TimedInstruction(0.0, "hi", ("turn(20)", "done()")),)
    for wrong in ("time_s: 0\n", "5\n", ""):
        (tmp_path / "said.yaml").write_text(wrong)
        with pytest.raises(BagError, match="not a list"):
            read_instructions(tmp_path / "said.yaml")
    path.write_text("\ufefftime_s,instruction,actions\n1,sit,\n", encoding="utf-8")  # as a spreadsheet does
    assert read_instructions(path) == (TimedInstruction(1.0, "sit"),)
    path.write_text("time_s,instruction\nsoon,sit\n")
    with pytest.raises(BagError, match="entry 1"):
        read_instructions(path)
    path.write_text("time_s,instruction,actions\n1,sit,fly(2)\n")
    with pytest.raises(BagError, match="fly"):
        read_instructions(path)
    with pytest.raises(BagError, match="nowhere"):
        read_instructions(tmp_path / "nowhere.csv")


def test_agreement_allows_for_small_differences_in_numbers_only():
    assert agrees("ok . turn ( 20 ) forward ( 1.5 )", ("turn(25)", "forward(1.3)"))
    assert not agrees("ok . turn ( 20 )", ("turn(20)", "forward(1)"))
    assert not agrees("turn(20)", ("turn(45)",))
    assert not agrees("forward(1)", ("strafe(1)",))
    assert not agrees("fly(1)", ("forward(1)",))
    assert agrees("nothing to do", ())


@pytest.mark.parametrize(
    ("text", "executed", "same"),
    [
        ("forward(1)", Executed(0.8), True),
        ("forward(1)", Executed(-0.8), False),
        ("turn(30) forward(1)", Executed(0.5, 0.0, 25.0), True),
        ("turn(30) forward(1)", Executed(0.5, 0.0, -25.0), False),
        ("strafe(-0.5)", Executed(0.0, -0.4), True),
        ("done()", Executed(0.02, 0.0, 1.0), True),
        ("done()", Executed(1.0), False),
    ],
)
def test_the_way_is_judged_by_the_first_thing_that_moves(text, executed, same):
    assert goes_the_same_way(text, executed) is same


def test_planned_motion_is_cut_off_at_the_horizon_and_held_against_the_executed_one():
    limits = SafetyLimits(max_speed_mps=0.5, max_turn_radps=0.8)
    assert planned("turn(20) forward(1)", 10.0, limits) == Executed(1.0, 0.0, 20.0)
    cut = planned("turn(20) wait(0.2) forward(1)", 20 / 45.84 + 1.2, limits)
    assert (cut.forward_m, cut.turn_deg) == (pytest.approx(0.5, abs=0.01), pytest.approx(20.0))
    assert planned("turn(-90)", 1.0, limits).turn_deg == pytest.approx(-45.84, abs=0.01)
    assert planned("fly(1)", 1.0, limits) is None
    assert motion_error("forward(1) done()", Executed(0.7, 0.4, 3.0), 5.0, limits) == {
        "off_m": pytest.approx(0.5),
        "off_deg": pytest.approx(3.0),
    }
    assert motion_error("forward(1)", None, 5.0, limits) == {"off_m": None, "off_deg": None}


def test_to_decline_is_to_do_nothing_at_the_first_look():
    assert declines("no , i will not do that . done ( )", ()) is True
    assert declines("ok . sit ( ) done ( )", ()) is False
    assert declines("done ( )", ("forward(1)",)) is None


def test_figures_carry_their_uncertainty():
    assert rate([]) is None
    half = rate([True, False] * 50)
    assert half.value == 0.5
    assert 0.4 < half.low < 0.41
    assert 0.59 < half.high < 0.6
    sure = mean([1.0, 2.0, 3.0, 4.0] * 25)
    assert sure.value == 2.5
    assert 2.2 < sure.low < 2.5 < sure.high < 2.8


def test_two_runs_are_compared_over_the_questions_both_asked():
    a = [{"bag": "b", "question": n, "total_s": 2.0 + 0.01 * n} for n in range(40)]
    b = [{"bag": "b", "question": n, "total_s": 1.0 + 0.01 * n} for n in range(10, 50)]
    found = compared(a, b, "total_s")
    assert found["after"] - found["before"] == pytest.approx(-1.0)
    assert (found["n"], found["p"] < 0.01) == (30, True)
    same = compared(a, a, "total_s")
    assert same["p"] == pytest.approx(1.0)
    assert compared(a, [{"bag": "other", "question": 1, "total_s": 1.0}], "total_s") is None


def test_a_recorded_answer_says_what_had_begun_on_the_draft(tmp_path):
    walk = Walk(tmp_path / "walk")
    for tick in range(40):
        walk.compressed(tick / 10)
    walk.answer(2.0, 1.2, "go to the box", start={"action": "turn(20)", "outcome": "corrected"})
    walk.answer(3.0, 2.2, "go to the box", ("turn(30)",))
    walk.answer(3.5, 3.2, "go to the box", ("turn(30)", "forward(1)"), start={"outcome": "perhaps"})
    walk.close()
    assert [question.start for question in asked(tmp_path / "walk")] == ["turn(20): corrected", "", ""]
