"""The main job as one command: starts every process, watches the mission, measures and shows it."""
