"""Sweeps: plan, result rows, and the journal of an unfinished sweep."""
