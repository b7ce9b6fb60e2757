"""What the laws for compressors stand on: subjects and their conventions, sessions, the audit, and the oracle.

The laws themselves are tests: ``tests/conformance`` in a clone, ``pressgauge/conformance/laws`` in an installed wheel.
"""
