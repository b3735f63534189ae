"""An operation a folder: its contract, its reference, a file for each backend that computes it, and its spec."""
