"""The cohort engine: numba kernels over preallocated arrays, batched over environments; imports no Gymnasium."""
