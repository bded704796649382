"""Measurements of speed and memory, micro-benchmarks of kernels, and the soak run; none of it is installed."""
