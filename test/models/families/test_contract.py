"""Every family says what Transformers says: its prompts, its logits on trees, its answers in any strategy.

Checkpoints are tiny, vocabularies real (`cases.py`, which says how a family is added).
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import pytest

from test.models.families.cases import CASES
from test.models.families.reference import SIZES, STRATEGIES, Inputs, Loaded, load_case, seen
from test.models.test_context import ends_of
from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.core.errors import Cancelled, ModelError
from vlm_spec_decode.core.ports import ScoreRequest
from vlm_spec_decode.core.types import Tokens
from vlm_spec_decode.decoding.choices import as_choices
from vlm_spec_decode.models.context import VlmContext

ATOL = 1e-4
WORDS = 20_000
"""Ids from 1,000 up to this one are pieces of text to every tokenizer here."""

Tree = tuple[Tokens, Tokens]


@pytest.fixture(scope="module", params=CASES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load_case(CASES[request.param], tmp_path_factory.mktemp(request.param) / "model")


def tree(rng: np.random.Generator, size: int) -> Tree:
    tokens = tuple(rng.integers(1000, WORDS, size).tolist())
    return tokens, tuple(int(rng.integers(0, i + 1)) for i in range(size))


def assert_rows(
    family: Loaded, inputs: Inputs, logits: npt.NDArray[np.float32], prefix: Tokens, nodes: Tree
) -> None:
    """Each row is what the unmodified model says of the path to its node, fed from the first token on."""
    ends = ends_of(prefix, *nodes)
    assert logits.shape == (len(ends), family.vocab_size)
    for row, path in zip(logits, ends, strict=True):
        wanted = family.reference.logits(inputs, path)[: family.vocab_size]
        np.testing.assert_allclose(row, wanted, atol=ATOL)


def test_the_prompt_is_the_processors_own(family: Loaded) -> None:
    """The same ids, and so the same number of image tokens, for pictures of every shape."""
    for size in family.sizes:
        observation = seen(size)
        wanted = family.reference.inputs(observation)
        context = family.model.open(observation)
        context.prefill()
        assert context.stats.prompt_tokens == wanted["input_ids"].shape[1], size
        assert expanded(family, size) == tuple(wanted["input_ids"][0].tolist()), size


def test_an_id_that_is_another_tokens_is_refused(family: Loaded) -> None:
    """Both are named: what the config says, and what the tokenizer has."""
    own = family.model.encoder.family
    assert own.token_texts or not own.sees
    for name, text in own.token_texts.items():
        right = getattr(own.config, name)
        assert own.tokenizer.convert_ids_to_tokens(right) == text
        setattr(own.config, name, right - 1)
        try:
            said = rf"{name} is {right - 1}, .* reads as .*; it has {re.escape(repr(text))} as {right}"
            with pytest.raises(ModelError, match=said):
                own.check_tokens()
        finally:
            setattr(own.config, name, right)
    own.check_tokens()


def expanded(family: Loaded, size: tuple[int, int] | None) -> Tokens:
    """Return the ids that our encoder makes, with a placeholder for every row of the picture."""
    encoder = family.model.encoder
    prompt = encoder.encode(seen(size))
    if not prompt.image:
        return prompt.ids
    features = encoder.family.encode_image(encoder.body, prompt.image)
    return encoder.family.expand_prompt(prompt.ids, prompt.image, features)


def test_a_picture_changes_what_is_said(family: Loaded) -> None:
    """So that the comparisons with pictures are none of nothing; a language-only family leaves it out."""
    blind, one, two = (family.model.open(seen(size)).score(()) for size in (None, *SIZES[:2]))
    difference = min(float(np.abs(a - b).max()) for a, b in ((blind, one), (one, two), (blind, two)))
    assert difference > 0.1 if family.case.sees else difference == 0


@pytest.mark.parametrize("max_dead", [0, 64])
def test_the_life_of_an_answer(family: Loaded, max_dead: int) -> None:
    """Prefill with a tree, chains, re-rooting into a branch, rollback, a foreign token; with evictions."""
    rng = np.random.default_rng(max_dead)
    observation = seen(family.sizes[-1])
    inputs, opened = family.reference.inputs(observation), family.model.open(observation)
    context = VlmContext(opened._decoder, opened._embed_prompt, max_dead=max_dead)
    chain: Tree = ((5001, 5002, 5003), (0, 1, 2))
    prefix: Tokens = ()
    for nodes in (tree(rng, 6), chain, tree(rng, 0), tree(rng, 4), tree(rng, 8)):
        assert_rows(family, inputs, context.score(prefix, *nodes), prefix, nodes)
        ends = ends_of(prefix, *nodes)
        prefix = ends[int(rng.integers(0, len(ends)))]
        match int(rng.integers(0, 3)):
            case 0:
                prefix = prefix[:-2]
            case 1:
                prefix = (*prefix[:-1], int(rng.integers(1000, WORDS)))
    assert (context.stats.gathers > 0) == (max_dead == 0)


def test_batches_of_other_prompts_trees_and_pictures(family: Loaded) -> None:
    """One pass over a prompt without a picture, others with pictures of other sizes, and a running answer."""
    rng = np.random.default_rng(1)
    observations = [seen(size) for size in family.sizes[:4]] + [seen(None, "wave at me, then stop")]
    contexts = [family.model.open(observation) for observation in observations]
    contexts[0].score((), *tree(rng, 3))
    prefixes: list[Tokens] = [()] * len(contexts)
    for _ in range(2):
        trees = [tree(rng, int(rng.integers(0, 5))) for _ in contexts]
        asked = [ScoreRequest(c, p, *t) for c, p, t in zip(contexts, prefixes, trees, strict=True)]
        for i, found in enumerate(family.model.score_batch(asked)):
            inputs = family.reference.inputs(observations[i])
            assert_rows(family, inputs, as_choices(found).logits, prefixes[i], trees[i])
            prefixes[i] = ends_of(prefixes[i], *trees[i])[-1]


def test_early_exits_are_the_first_layers_alone(family: Loaded) -> None:
    observation = seen(family.sizes[-1])
    inputs, context, heard = family.reference.inputs(observation), family.model.open(observation), []
    prefix, nodes = (5001,), ((5002, 5003), (0, 0))
    for _ in range(2):  # in the pass that has the prompt, and in one that has not
        context.score(prefix, *nodes, on_exit=lambda layer, rows: heard.append((layer, rows)))
        for layer, rows in heard:
            for row, path in zip(rows, ends_of(prefix, *nodes), strict=True):
                wanted = family.reference.logits(inputs, path, layers=layer)[: family.vocab_size]
                np.testing.assert_allclose(row, wanted, atol=ATOL)
        assert [layer for layer, _ in heard] == list(family.model.card.exit_layers) == [1, 2]
        heard.clear()
        prefix = (5001, 5002, 5004)


def test_a_pass_that_breaks_off_leaves_nothing(family: Loaded) -> None:
    def cancel(layer: int, rows: object) -> None:
        raise Cancelled("enough")

    observation = seen(family.sizes[-1])
    inputs, context = family.reference.inputs(observation), family.model.open(observation)
    for prefix in ((), (5001,)):
        with pytest.raises(Cancelled):
            context.score(prefix, (5002,), (0,), on_exit=cancel)
        nodes = ((5003, 5002), (0, 0))
        assert_rows(family, inputs, context.score(prefix, *nodes), prefix, nodes)


@pytest.mark.parametrize("setting", ["greedy", "sampled"])
def test_answers_are_those_of_generate(family: Loaded, setting: str) -> None:
    """Transformers' own loop, given only the rule that chooses; every size of picture, and no picture."""
    sizes = family.sizes if setting == "greedy" else (*family.sizes[:2], family.sizes[-1])
    for size in dict.fromkeys(sizes):
        observation = seen(size)
        wanted, logits = family.wanted(observation, setting)
        # The other strategies, and each of them for every prompt, are in benchmarks/families.py.
        names = STRATEGIES if size == family.sizes[-1] else ("speculative",)
        for name in names:
            assert family.said(name, observation, setting) == wanted, (name, size)
        context = family.model.open(observation)
        for count in (0, len(wanted) - 1):
            found = context.score(wanted[:count])[0]
            np.testing.assert_allclose(found, logits[count, : family.vocab_size].numpy(), atol=ATOL)


@pytest.mark.parametrize("setting", ["greedy, grammar", "sampled, grammar"])
def test_answers_under_the_grammar_are_those_of_generate(family: Loaded, setting: str) -> None:
    observation = seen(family.sizes[-1])
    wanted, _ = family.wanted(observation, setting)
    said = family.said("speculative", observation, setting)
    assert said == wanted
    if said[-1] in family.model.codec.stop_ids:
        assert parse_answer(family.model.codec.decode(said))


def test_nothing_is_computed_twice(family: Loaded) -> None:
    context, rng = family.model.open(seen(family.sizes[-1])), np.random.default_rng(2)
    nodes = tree(rng, 6)
    first = context.score((), *nodes)
    assert (context.stats.passes, context.stats.tokens) == (1, 6)
    assert np.array_equal(context.score((), *nodes), first)
    assert context.stats.passes == 1
    path = ends_of((), *nodes)[-1]
    again = context.score(path)
    np.testing.assert_allclose(again[0], first[-1], atol=ATOL)
    assert context.stats.passes == 1
