"""Tiny models of every causal architecture, and an oracle of what they compute that shares no code with the package."""
