"""The toolkit's speed against bare JAX; `make benchmarks` runs all of it."""
