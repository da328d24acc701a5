"""Data, training and evaluation of the shipped models."""

from vlm_spec_decode.core import environment

environment.prepare(environment.MODELS)
