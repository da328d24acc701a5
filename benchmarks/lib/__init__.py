"""What only our own benchmarks and tests use: simulations, floods, baselines, the papers' figures.

Not part of the installed package. The programs of `benchmarks/` import it as `lib`, the tests as
`benchmarks.lib`.
"""
