"""Tiny models of every causal architecture, and an oracle that shares no code with the package."""
