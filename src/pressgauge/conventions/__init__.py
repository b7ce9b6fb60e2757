"""Compressors of any convention, applied to a model. Needs neither pytest nor Hypothesis."""
