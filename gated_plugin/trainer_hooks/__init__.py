"""What happens around a training step; each file one hook, with one reason."""
