"""What is timed regularly, each as a program of its own: ``python -m benchmarks.suites.NAME --help``."""
