"""Properties on real weights and texts: a pretrained Llama of 260 thousand parameters, if found next to the project."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pressgauge import KnormPress, perplexity
from pressgauge.conformance.masked_attention import masked_logits
from pressgauge.conformance.versions import using
from pressgauge.texts import load_text
from support.drive import run
from tools.comparison.measurements import sampled

Load = Callable[..., tuple[Any, Any]]


@pytest.fixture(scope="module")
def stories(tinystories: Load) -> Tensor:
    """Four texts of 400 tokens sampled from the model."""
    model, tokenizer = tinystories("float64")
    return sampled(model, tokenizer, documents=4, tokens=400)


def test_a_larger_ratio_is_worse_under_step_and_better_under_budget(tinystories: Load, stories: Tensor) -> None:
    """The U-curve exists under ``step`` and not under ``budget`` (docs/false-results.md)."""
    model, _ = tinystories("float64")

    def ppl(ratio: float, schedule: Any) -> float:
        return perplexity(model, stories, KnormPress(ratio, prune_after=32, schedule=schedule)).ppl

    assert ppl(0.95, "step") > 1.5 * ppl(0.5, "step")
    assert ppl(1, "budget") < ppl(0.9, "budget") < ppl(0.5, "budget") < ppl(0.1, "budget")


def test_positions_from_held_raise_perplexity(tinystories: Load, stories: Tensor) -> None:
    """Perplexity explodes if a query's position is the number held (docs/false-results.md)."""
    model, _ = tinystories("float64")
    press = KnormPress(0.9, prune_after=128, schedule="step")
    true = perplexity(model, stories, press).nll.mean()
    cache = press.cache(model.config)
    nll = []
    with torch.no_grad(), press(model):
        for step in range(stories.shape[1] - 1):
            held = torch.full((len(stories), 1), max(cache.held))
            logits = model(stories[:, step : step + 1], **using(cache), position_ids=held).logits[:, -1]
            nll.append(torch.nn.functional.cross_entropy(logits, stories[:, step + 1]))
    assert torch.stack(nll).mean().exp() > 2 * true.exp()


@pytest.mark.parametrize("text", ["wikitext-2/test.txt", "books/shakespeare.txt"])
def test_logits_on_real_text_are_those_of_masked_attention(tinystories: Load, shared_folder: Path, text: str) -> None:
    """Rule 1 holds with real weights, on a prompt, single tokens and a second turn of real text."""
    model, tokenizer = tinystories("float64")
    ids = load_text(str(shared_folder / "data" / text), tokenizer, samples=1, tokens=120)
    result = run(model, KnormPress(0.5, prune_after=32, skip_layers=(0,)), ids, [60] + [1] * 30 + [20] + [1] * 10)
    assert result.cache.evictions
    assert (result.logits - masked_logits(model, ids, result.cache.evicted_at)).abs().max() < 1e-10
