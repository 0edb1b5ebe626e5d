"""What there is to learn: each module makes batches that are pure functions of (seed, step)."""
