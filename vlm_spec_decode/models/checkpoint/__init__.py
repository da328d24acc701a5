"""Reading checkpoints: their files, and the parts that are built from them."""
