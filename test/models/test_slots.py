"""The slot table against the plainest model of it: a set of token paths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_spec_decode.models.kv_slots import ROOT, SlotTable

tokens = st.integers(0, 3)
paths = st.lists(tokens, max_size=6).map(tuple)


@st.composite
def trees(draw):
    count = draw(st.integers(0, 8))
    parents = tuple(draw(st.integers(0, i)) for i in range(count))
    return tuple(draw(tokens) for _ in range(count)), parents


def paths_of(table: SlotTable) -> set[tuple[int, ...]]:
    return {table.path(slot) for slot in range(len(table))}


def prefixes(path):
    return {path[:i] for i in range(len(path) + 1)}


def check(table: SlotTable) -> None:
    assert len(paths_of(table)) == len(table)
    sees = table.visible(0)
    for slot in range(len(table)):
        path = table.path(slot)
        assert table.descend(path) == (slot, len(path))
        assert table.positions[slot] == len(path)
        seen = {table.path(int(other)) for other in np.flatnonzero(sees[slot])}
        assert seen == prefixes(path)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(paths, trees(), st.booleans()), max_size=6))
def test_table_is_a_set_of_paths_whatever_is_placed_and_gathered(steps):
    table, known = SlotTable(), {()}
    for prefix, (nodes, parents), evict in steps:
        if evict:
            root, matched = table.descend(prefix)
            top = prefix[:matched]
            known = {p for p in known if p[: len(top)] == top or top[: len(p)] == p}
            table.gather(table.alive(root))
            assert paths_of(table) == known
        rows = table.place(prefix, nodes, parents)
        ends = [prefix]
        for token, parent in zip(nodes, parents, strict=True):
            ends.append((*ends[parent], token))
        assert [table.path(row) for row in rows] == ends
        known |= set().union(*map(prefixes, ends))
        assert paths_of(table) == known
        check(table)


def test_visibility_survives_growth():
    table = SlotTable()
    table.place(range(100))
    assert np.array_equal(table.visible(0), np.tri(101, dtype=bool))


@pytest.mark.parametrize(
    ("nodes", "parents"), [((1,), (1,)), ((1, 2), (0, 3)), ((1,), (-1,)), ((1, 2), (0,))]
)
def test_what_is_no_tree_is_refused_and_adds_nothing(nodes, parents):
    table = SlotTable()
    with pytest.raises(ValueError, match="topological"):
        table.place((7,), nodes, parents)
    assert len(table) == 1
    assert table.descend((7,)) == (ROOT, 0)
