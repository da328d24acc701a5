"""A whole mission as one command: starts every process, follows the mission, measures and shows it."""
