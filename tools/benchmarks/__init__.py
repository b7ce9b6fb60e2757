"""Ratios of times and of memory, from interleaved runs: ``python -m tools.benchmarks [NAME...]``, or
``nox -s benchmarks``. They are not tests: each ratio is printed with its limit."""
