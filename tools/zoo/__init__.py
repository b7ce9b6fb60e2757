"""Presses on every causal architecture of the installed transformers, with tiny random models."""
