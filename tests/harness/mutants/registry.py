"""All mutants."""

from harness.mutants.attention_scores import ATTENTION_SCORES
from harness.mutants.benchmarks import BENCHMARKS
from harness.mutants.compressors import COMPRESSORS
from harness.mutants.evaluators import EVALUATORS
from harness.mutants.kept_alive import KEPT_ALIVE
from harness.mutants.measuring import MEASURING
from harness.mutants.memory import MEMORY
from harness.mutants.models import MODELS
from harness.mutants.mutant import Mutant
from harness.mutants.onepass import ONEPASS
from harness.mutants.quantised import QUANTISED
from harness.mutants.regressions import REGRESSIONS
from harness.mutants.smoke import SMOKE

MUTANTS: list[Mutant] = [
    *SMOKE,
    *COMPRESSORS,
    *ATTENTION_SCORES,
    *ONEPASS,
    *MEASURING,
    *MODELS,
    *REGRESSIONS,
    *EVALUATORS,
    *BENCHMARKS,
    *MEMORY,
    *KEPT_ALIVE,
    *QUANTISED,
]
