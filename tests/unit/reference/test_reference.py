"""The reference models: trained, and close to the exact probabilities."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pressgauge.reference
from pressgauge import KnormPress, perplexity
from pressgauge.models import REFERENCES
from pressgauge.reference.language import document

Load = Callable[..., tuple[Any, Any]]

pytestmark = pytest.mark.parametrize("name", REFERENCES)


def test_the_nll_is_close_to_the_exact_entropy(reference: Load, name: str) -> None:
    """On 32 new documents of 1,024 tokens, NLL is within .06 nats of the entropy, and recalled facts are below .1."""
    model, _ = reference(name)
    documents = [document(seed, 1024) for seed in range(32)]
    nll = perplexity(model, torch.tensor([text.tokens for text in documents]), method="plain").nll
    entropy = math.fsum(text.entropy for text in documents) / 32
    assert 0 < nll.mean().item() - entropy < 0.06
    recalled = torch.tensor([text.recalled for text in documents])[:, 1:]
    assert nll[recalled].mean() < 0.1


def test_contexts_of_2048_tokens_work(reference: Load, name: str) -> None:
    """Contexts of 2,048 tokens work, which exceed ``prune_after=512`` four times."""
    model, _ = reference(name)
    documents = [document(seed, 2048) for seed in range(8)]
    nll = perplexity(model, torch.tensor([text.tokens for text in documents]), method="plain").nll
    entropy = math.fsum(text.entropy for text in documents) / 8
    assert nll[:, 1024:].mean().item() < entropy + 0.2


def test_perplexity_rises_as_fewer_entries_are_retained(reference: Load, name: str) -> None:
    """On 8 documents with ``budget`` and P = 64, perplexity rises strictly over r = 1, .9, .7, .5, by 5 % at .5, and is
    no lower at .1."""
    model, _ = reference(name)
    ids = torch.tensor([document(seed, 1024).tokens for seed in range(8)])
    ppl = {ratio: perplexity(model, ids, KnormPress(ratio, prune_after=64)).ppl for ratio in (1, 0.9, 0.7, 0.5, 0.1)}
    assert ppl[1] < ppl[0.9] < ppl[0.7] < ppl[0.5]
    assert ppl[0.5] > 1.05 * ppl[1]
    assert ppl[0.1] >= ppl[0.5]


def test_the_weights_are_small_safetensors(name: str) -> None:
    """All reference models together take at most 5 MB, without pickles."""
    folder = Path(pressgauge.reference.__file__).parent
    assert (folder / name / "model.safetensors").is_file()
    models = [file for other in REFERENCES for file in (folder / other).iterdir()]
    assert sum(file.stat().st_size for file in models) < 5e6
    assert {file.suffix for file in models} <= {".safetensors", ".json", ".jinja"}
