"""Comparing strategies: profiles x links x pairs in virtual time, one decode loop for all."""
