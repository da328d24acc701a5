"""Several copies of the target behind one socket."""
