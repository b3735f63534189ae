"""compute-sanitizer over every op's kernels, after it has found the faults that are planted for it."""
