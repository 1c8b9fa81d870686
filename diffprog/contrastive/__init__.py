"""Text and images in one space: towers trained to agree on pairs, and images made by ascent on their similarity to a sentence."""
