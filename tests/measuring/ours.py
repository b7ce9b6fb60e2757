"""Our own measuring functions, in the conventions of the audit."""

from pressgauge.measuring.subjects import Measurement

SUBJECTS: dict[str, list[Measurement]] = {"evaluator": [], "benchmark": [], "memory": []}
