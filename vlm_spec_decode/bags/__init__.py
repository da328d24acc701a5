"""Rosbags: reading, questions, replay, scores, reports."""
