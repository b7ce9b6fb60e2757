"""Multimodal models that ``AutoModelForCausalLM`` loads: text prompts work in every way of use."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, DynamicCache, pipeline
from typer.testing import CliRunner

from pressgauge import KnormPress, Press, PressedCache, TOVAPress, generate, perplexity
from pressgauge.cli import app
from pressgauge.conformance.versions import CACHE, using
from pressgauge.models import load
from pressgauge.texts import load_text
from support.wide import float64_throughout
from support.zoo import oracle, specimens

WINDOW = 8
EXACT = 1e-9
"""Largest error in float64."""
PRESSES = [KnormPress(0.5, prune_after=3), TOVAPress(0.5, prune_after=3)]
PASSES = [6, *[1] * 18]


@pytest.fixture
def exact() -> Iterator[None]:
    """Models compute in float64 throughout."""
    with float64_throughout():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved Gemma 3 with images: two layers with a window, and two without."""
    if "gemma3" not in specimens.names():
        pytest.skip(f"transformers {transformers.__version__} has no gemma3 as a causal model")
    place = tmp_path_factory.mktemp("wrapper") / "gemma3"
    _, tokenizer = load("reference")
    config: Any = specimens.tiny(
        transformers.Gemma3Config, {"text_config.vocab_size": len(tokenizer) + 1, "image_token_id": len(tokenizer)}
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model: Any = transformers.Gemma3ForConditionalGeneration(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return str(place)


@pytest.fixture(scope="module")
def loaded(folder: str) -> tuple[Any, Any]:
    """The model in float64, and its tokenizer. Read-only."""
    model, tokenizer = load(folder, dtype="float64")
    assert type(model) is transformers.Gemma3ForConditionalGeneration
    assert AutoConfig.from_pretrained(folder).get_text_config().sliding_window == WINDOW
    return model, tokenizer


def ids(model: Any, rows: int = 1) -> torch.Tensor:
    """Token ids ``[rows, 24]``, longer than the window."""
    size = model.config.get_text_config().vocab_size - 1
    return torch.randint(3, size, (rows, sum(PASSES)), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("press", PRESSES, ids=["knorm", "tova"])
@pytest.mark.usefixtures("exact")
def test_one_pass_equals_decoding_and_the_oracle(loaded: tuple[Any, Any], press: Press) -> None:
    """Padded rows included."""
    model = loaded[0]
    onepass, stepwise = (perplexity(model, ids(model), press, 6, method) for method in ("onepass", "stepwise"))
    assert float((onepass.nll - stepwise.nll).abs().max()) < EXACT
    assert all(map(torch.equal, onepass.evicted_at, stepwise.evicted_at))
    assert onepass.affected_tokens == onepass.scored_tokens - 1
    expected = oracle.expected(model, ids(model), PASSES, stepwise.evicted_at)
    assert float((oracle.nll(expected, ids(model), 6) - stepwise.nll).abs().max()) < EXACT
    rows, mask = ids(model, 2), torch.ones(2, sum(PASSES), dtype=torch.long)
    mask[0, :5] = 0
    alone = perplexity(model, rows[:1, 5:], press, 3)
    for method in ("onepass", "stepwise"):
        batch = perplexity(model, rows, press, 8, method, attention_mask=mask)
        assert float((batch.nll[0] - alone.nll[0]).abs().max()) < EXACT


@torch.no_grad()
@pytest.mark.usefixtures("exact")
def test_a_plain_cache_equals_an_attached_press(loaded: tuple[Any, Any]) -> None:
    """The logits of every pass."""
    model, press = loaded[0], PRESSES[0]
    plain: Any = press.cache(model.config)
    attached: Any = DynamicCache(config=model.config)
    for part in ids(model).split(PASSES, dim=1):
        logits = model(part, **using(plain)).logits
        with press(model):
            assert float((model(part, **using(attached)).logits - logits).abs().max()) < EXACT
    assert plain.evictions == attached.evictions > 0


@torch.no_grad()
def test_generation_is_the_same_in_every_way(loaded: tuple[Any, Any]) -> None:
    """By ``generate`` of the model, attached and with a plain cache, by our own, and by a pipeline."""
    model, tokenizer = loaded
    press, prompt = PRESSES[0], "remember bado red . the old river runs . recall bado"
    given = tokenizer(prompt, return_tensors="pt")
    options: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    ours = generate(model, given["input_ids"], press, 8, eos_token_id=())
    assert isinstance(ours.cache, PressedCache)
    assert ours.cache.evictions
    plain = model.generate(**given, **options, eos_token_id=None, **{CACHE: press.cache(model.config)})
    parts: dict[str, Any] = {"model": model, "tokenizer": tokenizer}
    run: Any = pipeline("text-generation", **parts)
    with press(model):
        attached = model.generate(**given, **options, eos_token_id=None)
        piped = run(prompt, return_tensors=True, **options, eos_token_id=None)
    assert torch.equal(attached, ours.tokens)
    assert torch.equal(plain, ours.tokens)
    assert piped[0]["generated_token_ids"] == ours.tokens[0].tolist()


def test_a_saved_folder_is_measured(folder: str, tmp_path: Path) -> None:
    """``pressgauge measure`` gives the numbers of ``perplexity``, for a press on layers of both kinds."""
    out = tmp_path / "rows.json"
    options = ["--tokens", "40", "--samples", "1", "--prompt", "10", "--prune-after", "4", "--skip-layers", "none"]
    options += ["--keep-ratios", "1,0.5", "--dtype", "float64", "--device", "cpu", "--no-random", "--json", str(out)]
    result = CliRunner().invoke(app, ["measure", "--model", folder, *options])
    assert result.exit_code == 0, result.stderr
    model, tokenizer = load(folder, dtype="float64")
    text = load_text("reference", tokenizer, samples=1, tokens=40)
    rows = json.loads(out.read_text())["rows"]
    for row, press in zip(rows, (None, KnormPress(0.5, prune_after=4)), strict=True):
        found = perplexity(model, text, press, 10, "stepwise")
        assert row["ppl"] == pytest.approx(found.ppl, rel=EXACT)
        assert row["evictions"] == found.evictions
    assert rows[1]["evictions"] > 0
