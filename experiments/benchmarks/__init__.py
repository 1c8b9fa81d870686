"""Benchmarks of the toolkit against bare JAX; `make benchmarks` runs all of them."""
