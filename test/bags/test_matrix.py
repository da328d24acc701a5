"""Every way in which a bag is left (test/bags/matrix.py): what can be read is read, counted, or refused."""

import pytest

from test.bags.matrix import CASES, outcome
from test.bags.recorders import keys, messages, split
from test.bags.states import cut
from vlm_spec_decode.bags.reader import natural, open_bag
from vlm_spec_decode.core.errors import BagError

PARTS = (
    "cut",
    "damaged",
    "missing",
    "nothing",
    "zeros",
    "killed",
    "another",
    "ROS 1, no index",
    "ROS 1, half",
)
"""Words in the names of bags that do not hold the whole walk, or whose reader cannot know it."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_can_be_read_is_read_or_counted(case, tmp_path):
    found = outcome(case, tmp_path)
    assert found.is_right(case), found
    if not any(word in case.name for word in PARTS):
        assert found.read == len(messages()), "what is there in full is read, and not only counted"
        assert found.counted == 0


def test_twelve_files_come_in_the_order_of_recording(tmp_path):
    files = split(tmp_path / "walk", "mcap", 12)
    assert [file.name for file in sorted(files, key=lambda file: natural(file.name))][1:3] == [
        "walk_1.mcap",
        "walk_2.mcap",
    ]
    source = open_bag(tmp_path / "walk")
    times = [record.at_ns for record in source.records(source.topics)]
    assert times == sorted(times)
    assert len(times) == len(messages())


def test_files_are_ordered_by_their_times_where_names_say_nothing(tmp_path):
    for file, name in zip(split(tmp_path / "walk", "sqlite3 v4", 3), ("c", "a", "b"), strict=True):
        file.rename(file.with_name(f"{name}.db3"))
    source = open_bag(tmp_path / "walk")
    assert [record.at_ns for record in source.records(["/cmd_vel"])] == [
        message.at_ns for message in messages() if message.topic == "/cmd_vel"
    ]


def test_reading_twice_counts_once(tmp_path):
    bag, _ = cut(tmp_path, "mcap", 0.6, has_metadata=True)
    source = open_bag(bag)
    counts = []
    for _ in range(2):
        list(source.records(source.topics))
        counts.append(dict(source.faults))
    assert counts[0] == counts[1]
    assert any(name.startswith("messages not read: ") for name in counts[0])


def test_topics_that_nobody_asks_for_are_not_counted(tmp_path):
    bag, _ = cut(tmp_path, "sqlite3 v4", 0.6, has_metadata=True)
    source = open_bag(bag)
    list(source.records(["/vlm/instruction"]))
    assert not any("/cmd_vel" in name for name in source.faults)


def test_the_readers_leave_the_folder_as_it_was(tmp_path):
    case = next(case for case in CASES if case.name == "sqlite3, killed in WAL mode")
    bag, read = case.write(tmp_path)
    before = {file.name: file.read_bytes() for file in bag.iterdir()}
    source = open_bag(bag)
    assert {(record.topic, record.at_ns) for record in source.records(source.topics)} == read
    source.close()
    assert {file.name: file.read_bytes() for file in bag.iterdir()} == before


def test_a_folder_of_bags_is_named_as_one(tmp_path):
    split(tmp_path / "monday", "mcap", 1)
    with pytest.raises(BagError, match="monday"):
        open_bag(tmp_path)


def test_metadata_may_be_named_instead_of_its_folder(tmp_path):
    case = next(case for case in CASES if case.name == "mcap, 1 files")
    bag, read = case.write(tmp_path)
    source = open_bag(bag / "metadata.yaml")
    assert (
        {(record.topic, record.at_ns) for record in source.records(source.topics)} == read == keys(messages())
    )
