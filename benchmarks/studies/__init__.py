"""Experiments made once, each with its result and its date: benchmarks/studies/README.md."""
