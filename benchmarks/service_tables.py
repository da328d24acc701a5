"""What the figures of benchmarks/service.py are called in the docs."""

MEANINGS = {
    "fleet_same_tokens": "robots at once that are each told what they are told alone",
    "batched_over_one_by_one": "16 robots in shared passes over one by one, throughput",
    "batched_of_allowed": "the same over what the curve of batch costs allows",
    "first_action_p99_ratio": "time to first action, 99th percentile, 16 robots over 1",
    "overload_goodput": "goodput at 4 times capacity over capacity",
    "cloud_killed_right_or_named": "answers right or failed by name, cloud killed in each",
    "one_of_two_killed_right": "answers right, one of two clouds killed under load",
    "replica_killed_right": "answers right, one of two replicas killed under load",
    "replica_killed_lost": "answers lost in that",
    "replica_rejoined_right": "answers right after a node has joined and the lost replica works there",
    "replica_added_right": "answers right, a replica added and one taken away under load",
    "hostile_link_violations": "violations in runs of the hostile link",
    "malformed_crashes": "crashes and answers of others spoilt by malformed frames",
    "malformed_memory_growth": "the cloud's memory growth under them",
    "strangers_served": "attempts without an authorised key that reached anything",
    "soak_memory_growth": "memory growth over a long service",
    "soak_leaks": "descriptors and threads leaked in it",
}
