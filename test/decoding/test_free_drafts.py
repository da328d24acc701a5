"""Free drafts: what earlier answers say, bounded, apart for each owner, and learned from."""

from __future__ import annotations

import random

import pytest

from vlm_spec_decode.decoding.free_drafts import FreeDraft, FreeDrafts, Memories
from vlm_spec_decode.decoding.policy import PassPlan, with_free_draft
from vlm_spec_decode.decoding.tree import Subtree

GO, LEFT = (5, 6, 7, 8, 2), (5, 6, 9, 10, 2)


def recalled(memory: FreeDrafts, instruction: str, said: tuple[int, ...] = (), most: int = 16) -> FreeDraft:
    return memory.recall(instruction, said, most=most, floor=0.01)


def test_the_start_of_the_answer_to_a_like_instruction_is_recalled() -> None:
    memory = FreeDrafts()
    memory.add("go to the red chair", GO)
    memory.add("turn left", LEFT)
    assert recalled(memory, "walk over to the red chair").best() == GO
    assert recalled(memory, "please turn left").best() == LEFT
    assert recalled(memory, "turn left", LEFT[:3]).best() == LEFT[3:]
    assert recalled(FreeDrafts(), "turn left") == FreeDraft()


def test_where_answers_went_apart_the_draft_branches_and_the_latest_is_likeliest() -> None:
    memory = FreeDrafts()
    for answer in (GO, GO, LEFT):
        memory.add("go", answer)
    found = recalled(memory, "go")
    assert found.children()[2].keys() == {7, 9}
    assert found.best() == LEFT
    chances = {(p, t): c for t, p, c in found.rows()}
    assert chances[2, 9] > chances[2, 7] > 0
    assert sum(c for (p, _), c in chances.items() if p == 2) < 1


def test_no_run_reaches_from_one_answer_into_the_next() -> None:
    memory = FreeDrafts()
    memory.add("go", (5, 6))
    memory.add("go", (7, 8))
    assert all(token >= 0 for token in recalled(memory, "go").tokens)
    assert recalled(memory, "go", (5, 6)).tokens == ()


def test_the_likeliest_run_goes_on_to_the_end_of_an_answer() -> None:
    memory = FreeDrafts()
    memory.add("go", tuple(range(40)))
    assert memory.run("go", (), most=64) == tuple(range(40))
    assert memory.run("go", (0, 1), most=5) == (2, 3, 4, 5, 6)
    assert memory.run("turn", (90, 7, 8), most=3, least=2) == (9, 10, 11)
    assert memory.run("turn", (90, 7, 8), most=3, least=3) == ()
    assert memory.run("go", tuple(range(40)), most=64) == FreeDrafts().run("go", (), most=64) == ()


def test_what_is_learned_beside_the_answers_is_one_thing_for_each_owner() -> None:
    memories = Memories()
    mine = memories.of(b"a").record(list)
    assert memories.of(b"a").record(list) is mine
    assert memories.of(b"b").record(list) is not mine
    assert memories.of(b"a").record(dict) == {}


def test_its_memory_is_bounded_and_the_newest_answers_stay() -> None:
    memory, rng = FreeDrafts(max_tokens=400), random.Random(3)
    for number in range(200):
        memory.add(f"instruction {number}", tuple(rng.randrange(50) for _ in range(10)))
        assert memory.num_tokens <= 400 + 20
    memory.add("the last one", GO)
    assert recalled(memory, "the last one").best() == GO
    assert recalled(memory, "instruction 3").best() == recalled(memory, "instruction nothing").best()


def test_how_far_matches_are_to_be_trusted_is_learned_by_their_length() -> None:
    memory = FreeDrafts()
    memory.add("go", GO)
    before = [memory.trust(n) for n in range(5)]
    for _ in range(60):
        memory.learn(recalled(memory, "go"), (5, 6, 99))
    draft = recalled(memory, "go")
    lengths = [length for length, _ in draft.along((5, 6, 99))]
    after = [memory.trust(n) for n in range(5)]
    assert after[lengths[0]] > max(0.9, before[lengths[0]])
    assert after[lengths[2]] < min(0.1, before[lengths[2]])
    assert min(after) >= 0


def test_owners_are_apart_and_those_not_heard_of_are_forgotten() -> None:
    memories = Memories(most=2)
    memories.of(b"a").add("go", GO)
    assert recalled(memories.of(b"b"), "go") == FreeDraft()
    assert recalled(memories.of(b"a"), "go").best() == GO
    memories.of(b"c")
    assert recalled(memories.of(b"a"), "go").best() == GO
    memories.of(b"d")
    memories.of(b"e")
    assert recalled(memories.of(b"a"), "go") == FreeDraft()


@pytest.mark.parametrize("drafted", [(), (5,), (5, 9), (4,)])
def test_a_pass_holds_each_token_after_a_prefix_once(drafted: tuple[int, ...]) -> None:
    """What the edge has drafted keeps its number; what is recalled below it hangs there."""
    memory = FreeDrafts()
    memory.add("go", GO)
    nodes = Subtree(tuple(range(11, 11 + len(drafted))), drafted, tuple(range(len(drafted))))
    plan, chances = with_free_draft(PassPlan(1, (), nodes), recalled(memory, "go"))
    grown = plan.nodes
    rows = list(zip(grown.parents, grown.tokens, strict=True))
    assert len(set(rows)) == len(rows)
    assert grown.numbers[: len(drafted)] == nodes.numbers
    new = grown.numbers[len(drafted) :]
    assert len(set(new)) == len(new)
    assert all(number < 0 for number in new)
    assert set(chances) == set(new)
    paths = {0: ()}
    for row, (parent, token) in enumerate(rows, 1):
        paths[row] = (*paths[parent], token)
    assert GO in paths.values()
    assert not drafted or drafted in paths.values()
