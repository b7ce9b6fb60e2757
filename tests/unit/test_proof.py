"""No pass slips by a press: each ends with proof that every layer was handed its tokens, once, and attended to them."""

import re

import pytest
import torch

from harness.mutants.models import MODELS, BrokenModel
from pressgauge import KnormPress, generate, perplexity
from pressgauge.conformance import architectures
from pressgauge.conformance.versions import using

PRESS = KnormPress(0.5, prune_after=4)
PASSES = (12, 1, 3, 1)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("mutant", MODELS, ids=lambda mutant: mutant.broken.__name__)
@torch.no_grad()
def test_an_attached_press_stops_at_the_first_pass_that_is_wrong(mutant: BrokenModel, implementation: str) -> None:
    """The error names the layers, what the model did, the version of transformers, and a way out."""
    model = mutant.build()
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

    with pytest.raises(ValueError, match=mutant.sentence) as refusal, PRESS(model):
        feed()
    assert done == mutant.first
    assert re.search(r"transformers \d", str(refusal.value))
    assert re.search(r"pass skip_layers=\(1,\), which leaves layers 0, 2|without a press", str(refusal.value))


@pytest.mark.parametrize("mutant", MODELS, ids=lambda mutant: mutant.broken.__name__)
def test_every_way_of_measuring_stops_there(mutant: BrokenModel) -> None:
    """``perplexity`` in both ways, and ``generate``."""
    ids = architectures.tokens(1, 16)
    for method in ("stepwise", "onepass"):
        if method == "stepwise" or mutant.onepass:
            with pytest.raises(ValueError, match=re.sub("12", r"\\d+", mutant.sentence)):
                perplexity(mutant.build(), ids, PRESS, prompt=12, method=method)
    with pytest.raises(ValueError, match=re.sub("12", r"\\d+", mutant.sentence)):
        generate(mutant.build(), ids, PRESS, 4)


@pytest.mark.parametrize("mutant", MODELS[:3], ids=lambda mutant: mutant.broken.__name__)
def test_a_cache_that_a_model_ignores_is_noticed_without_a_press(mutant: BrokenModel) -> None:
    """The uncompressed run would feed each token to a model without a past."""
    ids = architectures.tokens(1, 16)
    sentence = "takes no key-value cache|was fed 12 tokens, and the cache that it was given has seen 0"
    with pytest.raises(ValueError, match=sentence):
        perplexity(mutant.build(), ids, None, prompt=12, method="stepwise")
    with pytest.raises(ValueError, match=sentence):
        generate(mutant.build(), ids[:, :12], None, 4)
