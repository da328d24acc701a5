"""Comparing strategies: profiles x links x pairs in virtual time, one decode loop for all.

Importing the package settles what torch reads from the environment while they are imported.
"""

from vlm_spec_decode.core import environment

environment.prepare(environment.MODELS)
