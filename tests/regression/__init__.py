"""Regression baselines: values as recorded, compared with current results, per device."""
