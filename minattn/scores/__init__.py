"""Scores and normalisers: what a score may be, and whether the weights must be a distribution."""
