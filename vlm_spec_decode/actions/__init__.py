"""The action language: types, parser, safety gate and executor."""
