"""Sizes of models, and the time and memory that they take."""
