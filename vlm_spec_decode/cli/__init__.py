"""The `vsd` command."""
