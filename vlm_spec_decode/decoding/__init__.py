"""Decoding without I/O: committed sequence, speculation tree, sampling, verification, grammar masks."""
