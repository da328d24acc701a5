"""What the figures of benchmarks/bags.py are called in the docs."""

MEANINGS = {
    "public_bags_read": "public bags that no one here wrote: images and twists read, or named",
    "round_trip_bytes": "record, then stock readers: messages that are byte-equal",
    "round_trip_answers": "record, then replay: answers with the same tokens",
    "live_replay_tokens": "live replay to the real nodes and fast replay: answers with the same tokens",
    "robot_tokens": "a robot's walk and its replay: answers with the same tokens",
    "replay_overhead": "time of a replay over decoding itself, share",
    "large_bag_memory_gb": "large bag: most memory held, GB",
    "large_bag_resumed": "large bag: goes on after a kill, every question asked once (1: yes)",
    "truncation_crashes": "cut at any byte: crashes",
    "truncation_read": "cut at any byte: share read of what lies before the cut",
}
