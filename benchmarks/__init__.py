"""Timing of what this package does, run from a checkout: ``python -m benchmarks.suites.generate --help``."""
