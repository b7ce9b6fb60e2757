"""Sweeps: what to measure, its rows, and the file that keeps them while they are made."""
