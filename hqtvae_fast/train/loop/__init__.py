"""The loop of both stages: updates, records, checkpoints, and when to stop."""
