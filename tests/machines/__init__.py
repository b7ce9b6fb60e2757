"""Hypothesis state machines."""
