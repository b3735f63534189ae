"""What every figure rests on: clocks, turns, surroundings, statistics, and what a results file says."""
