"""Documentation site: API reference, README and gallery of the experiments, built offline."""
