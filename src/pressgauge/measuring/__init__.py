"""Support code of the laws for code that measures: evaluators, benchmarks and memory figures.

The laws are tests: ``tests/measuring`` in a clone, ``pressgauge/measuring/laws`` in an installed wheel.
"""
