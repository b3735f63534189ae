"""Who takes part in a benchmark: ours, plain torch written down, and the released implementation."""
