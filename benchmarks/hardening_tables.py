"""What the figures of benchmarks/hardening.py are called in the documents."""

MEANINGS = {
    "tests_skipped": "tests skipped in CI other than for launch_ros, RViz and a GPU",
    "help_cpu_s": "`vsd --help`, CPU seconds over `python -c pass`",
    "stop_median_s": "`vsd stop`, key press to the stop at the robot's DDS service, median, s",
    "say_taken": "instructions said while recording: taken by the node",
    "say_recorded": "the same: in the recording, or named as missed",
    "say_in_silence": "the same: ended without a word",
}
