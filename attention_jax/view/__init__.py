"""Pictures of attention (extra: `pip install "attention-jax[view]"`)."""
