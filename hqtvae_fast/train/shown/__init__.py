"""What a run shows: its page, curves and sheets, what it says at its begin and end."""
