"""Pictures: read from files, as tensors, side by side, and drawn from numbers."""
