"""Comparing strategies: profiles x links x pairs in virtual time, one decode loop for all.

Importing the package settles what matplotlib reads from the environment while it is imported.
"""

from vlm_spec_decode.core import environment

environment.prepare(environment.PLOTS)
