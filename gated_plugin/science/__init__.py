"""What is measured: metrics, evaluation on held-out text, plots."""
