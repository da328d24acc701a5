"""Hints that branch where a distance may be another one: exact, priced by what they bring, learned from."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest

from test.edge.test_draft_ahead import ON_THE_WAY, an_engine, asked, result_of
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.types import AnswerRequest, DraftMessage, SamplingParams, Tokens
from vlm_spec_decode.decoding.tree import SpeculationTree
from vlm_spec_decode.edge.answer_cache import PRIORS, AnswerCache
from vlm_spec_decode.edge.draft_ahead import DraftAhead
from vlm_spec_decode.edge.engine import Engine
from vlm_spec_decode.edge.hint_tree import RANKS, HintNode, HintTree, number_ranks
from vlm_spec_decode.edge.told_numbers import ToldNumbers, neighbours_m, rounded_m
from vlm_spec_decode.protocol import codec
from vlm_spec_decode.strategies.base import EdgeConfig
from vlm_spec_decode.strategies.hybrid.cloud_policy import Cloud
from vlm_spec_decode.strategies.hybrid.draft_tree import DraftTree
from vlm_spec_decode.strategies.hybrid.edge import EdgeController, PromptLookup

WORDS = ("0.9", "1.0", "1.1", "1.4", "1.6", "1.8", "2.0", "2.2", "ahead", "at", "m", "(", "forward")
PARAMS = SamplingParams(max_tokens=40)


class WordCodec:
    """One token a word."""

    def encode(self, text: str) -> Tokens:
        return tuple(WORDS.index(word) for word in text.split() if word in WORDS)

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(WORDS[token] for token in tokens)


def number(*tokens: int, below: HintTree | None = None) -> HintTree:
    """A place at which one of `tokens` stands, likeliest first, with the same rest below each."""
    rest = list(below.top) if below else []
    return HintTree(tuple(HintNode(token, 0.3, (rank,), rest) for rank, token in enumerate(tokens)))


def after(tokens: Tokens, below: HintTree) -> HintTree:
    for token in reversed(tokens):
        below = HintTree((HintNode(token, children=list(below.top)),))
    return below


# The numbers --------------------------------------------------------------------------------------------


def test_told_distances_and_their_neighbours_are_on_one_grid() -> None:
    told, seen = 0.1, []
    while told not in seen:
        seen.append(told)
        told = round(neighbours_m(told)[1], 2)
    assert seen == [
        *(round(0.1 * step, 1) for step in range(1, 13)), 1.4, 1.6, 1.8, 2.0, 2.2, 2.4, 2.5,
        3.0, 3.5, 4.0, 4.5, 5.0,
    ]  # fmt: skip
    back = {up: round(neighbours_m(up)[0], 2) for up in seen}
    assert all(back[up] == down for down, up in pairwise(seen) if up not in (2.5, 3.0))
    assert rounded_m(0.02) == neighbours_m(0.1)[0] == 0.1


def test_the_way_to_the_question_is_taken_off_a_distance() -> None:
    numbers = ToldNumbers(WordCodec(), "go to the box", walks_m=0.5)
    (two,) = WordCodec().encode("2.0")
    found = numbers.candidates({two: 0.9})
    assert [WORDS[token] for token in found] == ["1.6", "1.4", "1.8"]
    assert sum(found.values()) == pytest.approx(0.9)
    standing = ToldNumbers(WordCodec(), "go to the box").candidates({two: 0.9, WORDS.index("ahead"): 0.1})
    assert WORDS[next(iter(standing))] == "2.0"
    assert WORDS.index("ahead") not in standing


def test_what_is_no_told_distance_stays() -> None:
    (one,) = WordCodec().encode("1.0")
    assert ToldNumbers(WordCodec(), "stop 1.0 m before it").candidates({one: 1.0}) == {}
    assert ToldNumbers(WordCodec(), "go", is_read=False).candidates({one: 1.0}) == {}
    numbers = ToldNumbers(WordCodec(), "go")
    assert numbers.is_described(WordCodec().encode("ahead at"))
    assert not numbers.is_described(WordCodec().encode("ahead at 1.0 m forward ("))


# The tree -----------------------------------------------------------------------------------------------


def test_nodes_go_out_likeliest_first_and_parents_before_children() -> None:
    tree = after((8, 9), number(2, 1, 3, below=HintTree.chain((10, 12))))
    assert tree.best == (8, 9, 2, 10, 12)
    found = tree.weighed(0.9, number_ranks(), 0.09)
    assert found.tokens == [8, 9, 2, 10, 12, 1, 10, 12, 3]
    assert found.parents == [0, 1, 2, 3, 4, 2, 6, 7, 2]
    first = 0.9 + 0.81 + 0.81 * RANKS[0] * (1 + 0.9 + 0.81)
    second, third = 0.81 * RANKS[1] * (1 + 0.9 + 0.81), 0.81 * RANKS[2]
    assert found.expected == pytest.approx(first + second + third)
    assert tree.weighed(0.9, number_ranks(), 0.5).tokens == [8, 9]


def test_both_ends_hold_the_same_tree_and_the_wire_carries_it() -> None:
    draft = after((8, 9), number(2, 1, below=HintTree.chain((10, 12)))).weighed(0.9, number_ranks(), 0.01)
    message = draft.message(3)
    edge, cloud = DraftTree(drafter=None, params=PARAMS), SpeculationTree()  # type: ignore[arg-type]
    edge.adopt(message)
    cloud.add(message)
    assert {n: node.path() for n, node in edge._sent.items()} == {
        n: _path(cloud, n) for n in range(1, len(message.tokens) + 1)
    }
    packer = codec.TokenPacker(len(WORDS))
    request = AnswerRequest(3, asked(), PARAMS, "hybrid", draft=message)
    opened = codec.open_message(request, packer, 0, (), draft=message)
    assert codec.answer_request(opened, packer, asked().image).draft == message


def _path(tree: SpeculationTree, node: int) -> Tokens:
    tokens: list[int] = []
    while node:
        tokens.append(tree.nodes[node].token)
        node = tree.nodes[node].parent
    return tuple(reversed(tokens))


# In an answer -------------------------------------------------------------------------------------------


def hinted(engine: Engine, hint: HintTree) -> Engine:
    engine._answer_cache.add_early(asked(ON_THE_WAY), hint.best, hint)
    return engine


def test_one_pass_verifies_the_candidates_of_a_number() -> None:
    """The hint is wrong at one place only; with the right token as a branch there, no pass is lost."""
    said = result_of(an_engine(0.3)[0], asked()).tokens
    wrong, place = (said[12] + 1) % 20, 12
    chain = HintTree.chain((*said[:place], wrong, *said[place + 1 : 24]))
    branch = after(said[:place], number(wrong, said[place], below=HintTree.chain(said[place + 1 : 24])))
    one, both = (result_of(hinted(an_engine(0.3)[0], hint), asked()) for hint in (chain, branch))
    assert one.tokens == both.tokens == said
    assert both.target_passes < one.target_passes
    assert both.total_s < one.total_s


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("rule", ["coupled", "rejection"])
def test_no_hint_changes_a_token(rule: str, temperature: float) -> None:
    """The law: hostile trees of wrong, repeated and right tokens leave the answer as it is."""
    more = {"rule": rule, "temperature": temperature, "seed": 5}
    plain = result_of(an_engine(0.6, **more)[0], asked()).tokens
    for seed in range(2):
        rng = random.Random(seed)
        engine = hinted(an_engine(0.6, **more)[0], HintTree(tuple(_hostile(rng, plain, 0))))
        assert result_of(engine, asked()).tokens == plain


def _hostile(rng: random.Random, plain: Tokens, depth: int) -> list[HintNode]:
    if depth >= 12:
        return []
    tokens = {plain[depth] if rng.random() < 0.7 else rng.randrange(20), rng.randrange(20)}
    is_number = rng.random() < 0.4
    return [
        HintNode(token, rng.random(), (rank,) if is_number else (), _hostile(rng, plain, depth + 1))
        for rank, token in enumerate(rng.sample(sorted(tokens), rng.randint(1, len(tokens))))
    ]


def test_how_often_each_candidate_was_right_is_learned_apart_from_the_words() -> None:
    cache = AnswerCache()
    for turn in range(60):
        question = asked(history=(f"turn({turn})",))
        cache.add_early(question, (8, 2, 10), after((8,), number(2, 1, 3, below=HintTree.chain((10,)))))
        cache.add(question, (8, 1, 10))
    assert cache.ranks[1].value > 0.6 > RANKS[1]
    assert cache.ranks[0].value < 0.2 < RANKS[0]
    assert cache.departure_rates[3].value < PRIORS[3]


def test_a_newer_frame_is_drafted_about_in_few_steps_where_it_shows_the_same() -> None:
    """What was drafted before is scored in one batched step, and only what differs is drafted again."""
    engine, _ = an_engine(0.9)
    first = len(list(engine.draft_ahead(asked(ON_THE_WAY))))
    known = engine._answer_cache.early_tokens(asked())
    *_, again = steps = list(engine.draft_ahead(asked()))
    assert len(steps) < 0.3 * first
    assert again == known


# In the cloud -------------------------------------------------------------------------------------------


def _chosen(weights: Sequence[int], answers: int) -> int:
    cloud, tree = Cloud(), SpeculationTree()
    count = len(weights)
    tree.add(DraftMessage(1, 0, 0, 1, tuple(range(count)), (0,) * count, tuple(weights)))
    if answers > 1:
        cloud.shares(answers, 0, 0)
    return len(cloud._choose(tree))


def test_a_row_that_holds_up_several_answers_must_bring_as_much_to_each() -> None:
    weights = list(range(0, 120, 4))
    alone, two, four = (_chosen(weights, answers) for answers in (1, 2, 4))
    assert alone > two > four > 0


def test_a_long_hint_makes_later_tokens_no_cheaper_than_a_usual_pass_does() -> None:
    own = Cloud().own
    assert own.node_floor(30.0) == own.node_floor(own.pace.usual_gain())
    assert own.node_floor(30.0) > own.node_floor(0.0)


class Scripted:
    """A draft model that goes on by the last word alone: a distance decides how far to walk."""

    may_step = True
    NEXT: ClassVar = {"": "ahead", "ahead": "at", "at": "2.0", "m": "(", "(": "forward", "forward": "ahead"}

    def choose(self, prefix: Tokens, tree: tuple[Tokens, Tokens], *, rows: Tokens) -> np.ndarray:
        tokens = (WordCodec().decode((token,)) for token in tree[0])
        words = [WORDS[prefix[-1]] if prefix else "", *tokens]
        logits = np.zeros((len(rows), len(WORDS)), np.float32)
        for place, row in enumerate(rows):
            logits[place, WORDS.index(self.NEXT.get(words[row], "m"))] = 9.0
        return logits

    def forced(self, prefix: Tokens) -> Tokens:
        return ()


def test_what_follows_each_distance_of_the_question_is_drafted() -> None:
    ahead = DraftAhead(
        drafter=Scripted(),  # type: ignore[arg-type]
        config=EdgeConfig(answer=0, params=SamplingParams(max_tokens=6)),
        numbers=ToldNumbers(WordCodec(), "go to the box", walks_m=0.5),
    )
    *_, best = ahead.steps()
    assert WordCodec().decode(best) == "ahead at 1.6 m ( forward"
    (first,) = ahead.hint().top
    numbers = first.children[0].children
    assert {WORDS[each.token]: each.ranks for each in numbers} == {"1.6": (0,), "1.4": (1,), "1.8": (2,)}
    assert [WORDS[each.children[0].token] for each in numbers] == ["m", "m", "m"]


def test_what_was_said_before_is_offered_where_the_draft_comes_to_it() -> None:
    """A run below a drafted node is at the cloud before the commit that leads there."""
    lookup = PromptLookup(hints=(WordCodec().encode("ahead at 1.6 m ( forward"),))
    config = EdgeConfig(answer=0, params=SamplingParams(max_tokens=9))
    tree = DraftTree(drafter=Scripted(), params=config.params)  # type: ignore[arg-type]
    tree.prefix = WordCodec().encode("( forward")
    for _ in range(2):
        tree.expand([tree.best_path()[0]])
    lookup.offer(tree, Scripted())  # type: ignore[arg-type]
    end, _ = tree.best_path()
    run: list[str] = []
    while end.children:
        end = max(end.children.values(), key=lambda child: child.log_prob)
        run.append(WORDS[end.token])
    assert run == ["1.6", "m", "(", "forward"]
    place, remembered = tree.best_path()[0], WORDS.index("1.6")
    assert place.children[remembered].log_prob == pytest.approx(math.log(lookup.trust.value))
    tree.expand([place])
    assert WORDS[place.choice] == "2.0"
    assert place.children[remembered].log_prob < math.log(0.1), "the draft has come there, and says otherwise"
    before = lookup.trust.value
    tree.advance(WordCodec().encode("ahead at 1.6"))
    lookup.offer(tree, Scripted())  # type: ignore[arg-type]
    assert lookup.trust.value > before


def test_where_the_draft_says_another_token_the_rest_of_a_run_goes_on_below_it() -> None:
    """And what is another one there is another one wherever it comes again."""
    config = EdgeConfig(answer=0, params=SamplingParams(max_tokens=12))
    tree = DraftTree(drafter=Scripted(), params=config.params)  # type: ignore[arg-type]
    tree.prefix = WordCodec().encode("( forward")
    tree.expand([tree.root])
    choice = tree.root.choice
    other, *rest = (token for token in range(len(WORDS)) if token != choice)
    tree = DraftTree(drafter=Scripted(), params=config.params, prefix=tree.prefix)  # type: ignore[arg-type]
    run = (other, rest[0], rest[1], other)
    lookup = PromptLookup(recall=lambda prefix, least: run if len(prefix) == 2 else ())
    lookup.offer(tree, Scripted())  # type: ignore[arg-type]
    assert tree.root.run == run
    assert tree.root.children[other].is_remembered
    tree.expand([tree.root])
    lookup.offer(tree, Scripted())  # type: ignore[arg-type]
    assert tree.root.children[choice].run == (rest[0], rest[1], choice)


class Resting:
    """A draft model that may not be used now."""

    may_step = False


def test_what_a_draft_step_is_about_to_score_is_not_sent_before() -> None:
    config = EdgeConfig(answer=0, params=SamplingParams(max_tokens=12))
    tree = DraftTree(drafter=Scripted(), params=config.params)  # type: ignore[arg-type]
    run = WordCodec().encode("ahead at 1.6 m")
    PromptLookup(recall=lambda *_: run).offer(tree, Scripted())  # type: ignore[arg-type]
    control = EdgeController(config=config, clock=VirtualClock())
    assert control.worth_expanding(tree)
    assert control.worth_sending(tree) == []
    control.drafting.is_on = False
    assert control.worth_expanding(tree) == []
    control.drafting.is_on, tree.drafter = True, Resting()  # type: ignore[assignment]
    assert control.worth_expanding(tree) == []
    assert [node.token for node in control.worth_sending(tree)] == list(run), "no step will score them"


# Distances that are spelled digit by digit ----------------------------------------------------------------

PIECES = ("ahead", " at", " m", " forward(", ".", *(f" {n}" for n in range(10)), *(str(n) for n in range(10)))


class DigitCodec:
    """A digit a token, with its space or without, as byte-level vocabularies have them."""

    def encode(self, text: str) -> Tokens:
        ids = []
        while text:
            piece = max((p for p in PIECES if text.startswith(p)), key=len)
            ids.append(PIECES.index(piece))
            text = text[len(piece) :]
        return tuple(ids)

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(PIECES[token] for token in tokens)


class SpelledDraft(Scripted):
    """A draft model that says "ahead at 2.4 m forward(2.4", by how much has been said."""

    SAYS = DigitCodec().encode("ahead at 2.4 m forward(2.4")

    def choose(self, prefix: Tokens, tree: tuple[Tokens, Tokens], *, rows: Tokens) -> np.ndarray:
        tokens, parents = tree
        depth = [0]
        for parent in parents:
            depth.append(depth[parent] + 1)
        logits = np.zeros((len(rows), len(PIECES)), np.float32)
        for place, row in enumerate(rows):
            words = [tokens[i - 1] for i in _rows_up(parents, row)]
            # After the unit it goes on with the call, wherever that comes.
            if words[-1:] == [PIECES.index(" m")]:
                said = PIECES.index(" forward(")
            else:
                said = self.SAYS[min(depth[row], len(self.SAYS) - 1)]
            logits[place, said] = 9.0
        return logits


def _rows_up(parents: Sequence[int], row: int) -> list[int]:
    up: list[int] = []
    while row:
        up.append(row)
        row = parents[row - 1]
    return up[::-1]


def spelled_numbers(instruction: str = "go to the box", walks_m: float = 0.0) -> ToldNumbers:
    return ToldNumbers(DigitCodec(), instruction, walks_m)


@pytest.mark.parametrize(
    ("text", "behind", "found"),
    [
        ("ahead at 2.4", " m", (3, 2.4)),
        ("ahead at 2", " m", (1, 2.0)),
        ("ahead at 2", "4", None),
        ("ahead at 2", ".", None),
        ("ahead at 2", " at", None),
        ("ahead at 1.25", " m", (4, 1.25)),
        ("ahead at", " m", None),
    ],
)
def test_a_distance_is_read_where_its_spelling_ends(
    text: str, behind: str, found: tuple[int, float] | None
) -> None:
    codec = DigitCodec()
    (following,) = codec.encode(behind)
    assert spelled_numbers().spelled_m(codec.encode(text), following) == found
    assert ToldNumbers(codec, "", is_read=False).spelled_m(codec.encode(text), following) is None
    if found:
        named = f"stop {text.rsplit(maxsplit=1)[-1]} m before it"
        assert spelled_numbers(named).spelled_m(codec.encode(text), following) is None


@pytest.mark.parametrize(
    ("old", "told_m", "new"),
    [(" 2.4", 2.0, " 2"), (" 2.0", 1.0, " 1.0"), (" 2", 1.8, " 1.8"), ("2", 3.0, "3")],
)
def test_another_distance_is_spelled_as_the_old_one_was(old: str, told_m: float, new: str) -> None:
    codec = DigitCodec()
    before = codec.encode("ahead at")
    assert spelled_numbers().spelling(before, codec.encode(old), told_m) == codec.encode(new)


def test_what_follows_each_spelled_distance_of_the_question_is_drafted() -> None:
    ahead = DraftAhead(
        drafter=SpelledDraft(),  # type: ignore[arg-type]
        config=EdgeConfig(answer=0, params=SamplingParams(max_tokens=10)),
        numbers=spelled_numbers(walks_m=0.4),
    )
    *_, best = ahead.steps()
    codec = DigitCodec()
    assert codec.decode(best).startswith("ahead at 2 m forward(")
    hint = ahead.hint()
    for said in ("ahead at 2 m forward(", "ahead at 1.8 m forward(", "ahead at 2.2 m forward("):
        assert hint.holds(codec.encode(said)), said
    assert not hint.holds(codec.encode("ahead at 2.4 m")), "that was seen before the walk"
    (first,) = hint.top
    digits = {PIECES[each.token]: each for each in first.children[0].children}
    assert {text: each.ranks for text, each in digits.items()} == {" 2": (0, 2), " 1": (1,)}
    assert {PIECES[each.token]: each.ranks for each in digits[" 2"].children} == {" m": (0,), ".": (2,)}
    # As a pass sees it, each candidate is as likely as its rank, however many tokens it has.
    weighed = hint.weighed(1.0, number_ranks(), 0.01)
    chance = {0: 1.0}
    paths = {0: ""}
    for number, (token, parent) in enumerate(zip(weighed.tokens, weighed.parents, strict=True), 1):
        chance[number] = chance[parent] * weighed.chances[number - 1]
        paths[number] = paths[parent] + PIECES[token]
    reached = {paths[number]: chance[number] for number in chance}
    for said, rank in (("ahead at 2 m", 0), ("ahead at 1.8 m", 1), ("ahead at 2.2 m", 2)):
        assert reached[said] == pytest.approx(reached["ahead at"] * RANKS[rank], rel=0.01)


@pytest.mark.parametrize(("said", "right"), [("2 m", 0), ("1.8 m", 1), ("2.2 m", 2), ("1.6 m", None)])
def test_how_often_each_spelled_candidate_was_right_is_learned(said: str, right: int | None) -> None:
    codec, cache = DigitCodec(), AnswerCache()
    ahead = DraftAhead(
        drafter=SpelledDraft(),  # type: ignore[arg-type]
        config=EdgeConfig(answer=0, params=SamplingParams(max_tokens=10)),
        numbers=spelled_numbers(walks_m=0.4),
    )
    *_, best = ahead.steps()
    cache.add_early(asked(), best, ahead.hint())
    cache.add(asked(), codec.encode(f"ahead at {said} forward("))
    learned = [rate.value - prior for rate, prior in zip(cache.ranks, RANKS, strict=True)]
    for rank in range(3):
        assert (learned[rank] > 0) is (rank == right), learned
