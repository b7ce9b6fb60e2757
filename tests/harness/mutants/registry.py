"""All mutants."""

from harness.mutants.attention_scores import ATTENTION_SCORES
from harness.mutants.benchmarks import BENCHMARKS
from harness.mutants.compressors import COMPRESSORS
from harness.mutants.declared import DECLARED
from harness.mutants.evaluators import EVALUATORS
from harness.mutants.kept_alive import KEPT_ALIVE
from harness.mutants.measuring import MEASURING
from harness.mutants.memory import MEMORY
from harness.mutants.models import MODELS
from harness.mutants.mutant import Mutant
from harness.mutants.onepass import ONEPASS
from harness.mutants.operations import OPERATIONS
from harness.mutants.quantised import QUANTISED
from harness.mutants.regressions import REGRESSIONS
from harness.mutants.smoke import SMOKE
from harness.mutants.softmax import SOFTMAX
from harness.mutants.ways_in import WAYS_IN
from harness.mutants.windows import WINDOWS

MUTANTS: list[Mutant] = [
    *SMOKE,
    *WAYS_IN,
    *DECLARED,
    *COMPRESSORS,
    *ATTENTION_SCORES,
    *ONEPASS,
    *SOFTMAX,
    *WINDOWS,
    *MEASURING,
    *MODELS,
    *REGRESSIONS,
    *EVALUATORS,
    *BENCHMARKS,
    *MEMORY,
    *OPERATIONS,
    *KEPT_ALIVE,
    *QUANTISED,
]
