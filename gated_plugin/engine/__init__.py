"""The sparse engine: gated encode, decode and training step, exact and on the support alone."""
