"""Compiled CPU kernels; their host functions are in `engine.cpu`."""
