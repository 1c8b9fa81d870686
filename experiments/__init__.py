"""Scripts to run and to copy from; each writes figures, numbers and a page to `results/`."""
