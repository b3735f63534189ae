"""Finds the choices of a model, proves and times their variants in worker processes, and writes a plan."""
