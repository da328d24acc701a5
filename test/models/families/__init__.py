"""One contract for every family, on tiny checkpoints with the real vocabularies."""
