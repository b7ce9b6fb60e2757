"""The published comparison of presses, measured: ``python -m comparison`` writes ``docs/comparison.md``."""
