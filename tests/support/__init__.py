"""Helpers shared by tests and tools."""
