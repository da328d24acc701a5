"""Data, training and evaluation of the shipped models."""
