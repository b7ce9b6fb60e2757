"""Each pass ends with proof that every layer passed its tokens, once, to the cache and attended to its result."""

import re

import pytest
import torch

from harness.mutants.models import MODELS, broken_llama
from harness.mutants.mutant import Mutant
from pressgauge import KnormPress, generate, perplexity
from pressgauge.conformance import architectures
from pressgauge.conformance.versions import using

PRESS = KnormPress(0.5, prune_after=4)
PASSES = (12, 1, 3, 1)
LATER = "model-every-second-pass"
"""The one whose first pass is correct, and so is a single pass over a text."""


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("mutant", MODELS, ids=lambda mutant: mutant.id)
@torch.no_grad()
def test_an_attached_press_stops_at_the_first_pass_that_is_wrong(mutant: Mutant, implementation: str) -> None:
    """The first wrong pass raises an error with the layers, the reason, the version of transformers and a way out."""
    model = broken_llama(mutant)
    model.set_attn_implementation(implementation)
    ids = architectures.tokens(1, sum(PASSES))
    cache = PRESS.cache(model.config)
    done = 0

    def feed() -> None:
        nonlocal done
        for length in PASSES:
            seen = sum(PASSES[:done])
            model(ids[:, seen : seen + length], **using(cache))
            done += 1

    with pytest.raises(ValueError, match=mutant.says[0]) as refusal, PRESS(model):
        feed()
    assert done == (1 if mutant.id == LATER else 0)
    assert re.search(r"transformers \d", str(refusal.value))
    assert re.search(r"pass skip_layers=\(1,\), which leaves layers 0, 2|without a press", str(refusal.value))


@pytest.mark.parametrize("mutant", MODELS, ids=lambda mutant: mutant.id)
def test_every_method_stops_there(mutant: Mutant) -> None:
    """``perplexity`` by both methods and ``generate`` raise the error."""
    ids = architectures.tokens(1, 16)
    for method in ("stepwise", "onepass"):
        if method == "stepwise" or mutant.id != LATER:
            with pytest.raises(ValueError, match=re.sub("12", r"\\d+", mutant.says[0])):
                perplexity(broken_llama(mutant), ids, PRESS, prompt=12, method=method)
    with pytest.raises(ValueError, match=re.sub("12", r"\\d+", mutant.says[0])):
        generate(broken_llama(mutant), ids, PRESS, 4)


@pytest.mark.parametrize("mutant", MODELS[:3], ids=lambda mutant: mutant.id)
def test_an_ignored_cache_is_refused_without_a_press(mutant: Mutant) -> None:
    """A model that ignores its cache is refused without a press, since each token would be fed without a past."""
    ids = architectures.tokens(1, 16)
    sentence = "takes no key-value cache|was fed 12 tokens, and the cache that it was given has seen 0"
    with pytest.raises(ValueError, match=sentence):
        perplexity(broken_llama(mutant), ids, None, prompt=12, method="stepwise")
    with pytest.raises(ValueError, match=sentence):
        generate(broken_llama(mutant), ids[:, :12], None, 4)
