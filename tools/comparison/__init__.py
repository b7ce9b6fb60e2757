"""The published comparison of presses, measured: ``python -m tools.comparison`` writes ``docs/comparison.md``."""
