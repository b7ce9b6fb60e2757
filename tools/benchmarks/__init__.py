"""Ratios of times and of memory, measured side by side: ``python -m tools.benchmarks [NAME...]``, or
``nox -s benchmarks``. Nothing here is a test: a ratio is printed beside its limit, and a slow day breaks nothing."""
