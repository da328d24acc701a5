"""Speculative edge-cloud decoding of vision-language models for the Unitree Go2."""

__version__ = "0.1.0"
