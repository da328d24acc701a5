from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vlm_spec_decode.core.types import DraftMessage
from vlm_spec_decode.decoding.tree import SpeculationTree, chain_parents, quantise


def draft(first: int, tokens: tuple[int, ...], parents: tuple[int, ...], base: int = 0) -> DraftMessage:
    return DraftMessage(1, 0, base, first, tokens, parents)


def test_a_commit_keeps_the_confirmed_subtree_and_buries_its_siblings() -> None:
    tree = SpeculationTree()
    tree.add(draft(1, (5, 6, 7, 8), (0, 1, 0, 3)))
    assert tree.live() == (1, 3, 2, 4)
    assert tree.advance((5,)) == 1
    assert tree.live() == (2,)
    assert tree.subtree((2,)).parents == (0,)
    assert tree.add(draft(5, (9,), (4,))) == ()
    assert tree.late == 1


def test_a_draft_that_comes_after_its_commit_is_re_rooted_by_what_it_says() -> None:
    tree = SpeculationTree()
    tree.advance((5, 6))
    assert tree.add(draft(1, (5, 6, 7), (0, 1, 2))) == (3,)
    assert tree.nodes[3].position == 2
    assert tree.add(draft(4, (9, 7), (0, 4))) == ()


def test_unknown_parents_and_a_base_ahead_are_counted_drops() -> None:
    tree = SpeculationTree()
    assert tree.add(draft(3, (1,), (2,))) == ()
    assert tree.add(draft(4, (1,), (0,), base=7)) == ()
    assert tree.unknown == 2


def test_the_same_token_drafted_twice_is_one_node() -> None:
    tree = SpeculationTree()
    tree.add(draft(1, (5,), (0,)))
    assert tree.add(draft(2, (5, 6), (0, 2))) == (3,)
    assert tree.subtree((1, 3)).parents == (0, 1)


def test_chain_parents_hang_below_each_other() -> None:
    assert chain_parents(4, 3) == (0, 4, 5)
    assert chain_parents(4, 0) == ()
    assert chain_parents(4, 2, parent=3) == (3, 4)


def test_the_chain_of_a_tree_is_that_of_the_eldest() -> None:
    tree = SpeculationTree()
    tree.add(draft(1, (5, 6, 7, 8, 9, 4), (0, 0, 1, 2, 1, 3)))
    chain = tree.subtree(tree.live()).chain()
    assert (chain.numbers, chain.tokens, chain.parents) == ((1, 3, 6), (5, 7, 4), (0, 1, 2))
    own = chain.grown((2, 3), (0, 3)).chain()
    assert (own.tokens, own.parents) == ((5, 7, 4, 3), (0, 1, 2, 3))
    assert own.named(4) == (6, 3)
    assert SpeculationTree().subtree(()).chain().tokens == ()


def test_weights_fit_a_byte() -> None:
    assert (quantise(0.0), quantise(-1.0), quantise(-1e9), quantise(0.3)) == (0, 16, 255, 0)


@given(st.data())
def test_what_survives_does_not_depend_on_when_drafts_arrive(data: st.DataObject) -> None:
    """Adding before or after a commit, once or twice, leaves the same live paths."""
    size = data.draw(st.integers(1, 12))
    tokens = tuple(data.draw(st.integers(0, 2)) for _ in range(size))
    parents = tuple(data.draw(st.integers(0, i)) for i in range(size))
    said = tuple(data.draw(st.lists(st.integers(0, 2), max_size=5)))
    whole = draft(1, tokens, parents)
    cut = data.draw(st.integers(0, size))
    first = draft(1, tokens[:cut], parents[:cut])

    def paths(tree: SpeculationTree) -> set[tuple[int, ...]]:
        found = set()
        for leaf in tree.live():
            path: tuple[int, ...] = ()
            number = leaf
            while number:
                path = (tree.nodes[number].token, *path)
                number = tree.nodes[number].parent
            found.add(path)
        return found

    before, after, split = SpeculationTree(), SpeculationTree(), SpeculationTree()
    before.add(whole)
    before.advance(said)
    after.advance(said)
    after.add(whole)
    split.add(first)
    split.advance(said[:2])
    split.add(whole)
    split.advance(said[2:])
    split.add(whole)
    assert paths(before) == paths(after) == paths(split)
    assert all(before.nodes[n].position >= len(said) for n in before.live())
