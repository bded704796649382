"""Performance, power and cooling as small pure functions, used by the engine's kernels and by people."""
