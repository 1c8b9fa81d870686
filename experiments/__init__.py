"""Scripts a person runs and copies from; each saves figures and prints a table."""
