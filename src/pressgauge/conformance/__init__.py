"""Support code of the laws for compressors: subjects, adapters, sessions, audit and oracle.

The laws are tests: ``tests/conformance`` in a clone, ``pressgauge/conformance/laws`` in an installed wheel.
"""
