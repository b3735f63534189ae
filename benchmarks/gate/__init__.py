"""Has something become slower? Two revisions timed in turn, and what can be counted on any machine."""
