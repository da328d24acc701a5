"""What the figures of benchmarks/hardening.py are called in the documents."""

MEANINGS = {
    "tests_skipped": "tests skipped in CI other than for launch_ros, RViz and a GPU",
    "help_cpu_s": "`vsd --help`, CPU seconds over `python -c pass`",
    "stop_median_s": "`vsd stop`, key press to the stop at the robot's DDS service, median, s",
    "say_taken": "instructions said while recording: taken by the node",
    "say_recorded": "the same: in the recording, or named as missed",
    "say_in_silence": "the same: ended without a word",
    "rest_SIGINT": "robot at rest within 1.5 s of the end of `vsd say`: SIGINT",
    "rest_SIGTERM": "the same: SIGTERM",
    "rest_SIGHUP": "the same: SIGHUP",
    "rest_closed_terminal": "the same: its terminal closed",
    "rest_kill_-9": "the same: kill -9",
    "sensor_walks_on": "degenerate messages of a sensor: the robot walks on",
    "sensor_node_dead": "the same: the node is dead",
    "sensor_not_named": "the same: no word of it in `/diagnostics`",
    "sensor_good_refused": "legal messages by which it does not walk",
    "sensor_fewest_cases": "cases of the sensor that has fewest",
    "flipped_bits_right": "flipped bits, one per answer: answers right",
    "flipped_bits_not_named": "the same: wrong, or never ended",
    "flipped_bits_longest_pause": "the same: longest pause, s",
    "flipped_offsets_right": "a flip at every offset of a frame, both directions: answers right",
}
