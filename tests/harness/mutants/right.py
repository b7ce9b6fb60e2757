"""Measuring code that is right, in the styles in which people write it: none of it breaks a law for its kind."""

from harness.mutants.memory import RIGHT_MEMORY
from harness.mutants.right_benchmarks import RIGHT_BENCHMARKS
from harness.mutants.right_evaluators import RIGHT_EVALUATORS
from pressgauge.measuring.subjects import Measurement

RIGHT: list[Measurement] = [*RIGHT_EVALUATORS, *RIGHT_BENCHMARKS, *RIGHT_MEMORY]
