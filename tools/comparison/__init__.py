"""Comparison of presses with published claims: ``python -m tools.comparison`` writes ``docs/comparison.md``."""
