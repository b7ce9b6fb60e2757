"""kvpress and transformers' quantised cache, measured by ``pressgauge measure`` next to presses."""

from pathlib import Path

import pytest
import torch
from kvpress import StreamingLLMPress
from transformers import DynamicCache
from typer.testing import CliRunner

from pressgauge.bench.results import read_results
from pressgauge.cli import app
from pressgauge.conformance.versions import using
from pressgauge.models import load
from pressgauge.texts import load_text

TOKENS, PROMPT = 48, 36
FACTORIES = """
from kvpress import KnormPress, StreamingLLMPress


def streaming(keep_ratio):
    return StreamingLLMPress(compression_ratio=1 - keep_ratio, n_sink=4)


def knorm(keep_ratio):
    return KnormPress(compression_ratio=1 - keep_ratio)
"""


def test_they_stand_in_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command measures presses, kvpress's and a quantised cache, each by its own convention."""
    (tmp_path / "presses_of_kvpress.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    quantised = "transformers:QuantizedCache(backend=quanto,nbits=4,q_group_size=8)"
    names = f"knorm,random,presses_of_kvpress:streaming,presses_of_kvpress:knorm,{quantised}"
    given = f"--samples 1 --tokens {TOKENS} --keep-ratios 0.5 --prune-after 8 --schedule prefill --dtype float64"
    result = CliRunner().invoke(app, ["measure", "--press", names, *given.split(), "--json", "rows.json"])
    assert result.exit_code == 0, result.output
    rows = {row.press.split("(")[0]: row for row in read_results(tmp_path / "rows.json").rows if row.keep_ratio != 1}
    streaming, knorm = rows["presses_of_kvpress:streaming"], rows["presses_of_kvpress:knorm"]
    cache = rows["transformers:QuantizedCache"]
    for row in (streaming, knorm):
        # 18 of the prompt's 36 tokens are retained, and all later ones; the first affected query is the one after it.
        assert row.held == (18 + TOKENS - PROMPT,) * 3
        assert row.affected_tokens == TOKENS - PROMPT - 1
        assert row.left == "module model.layers.0.self_attn.rotary_emb is new"
    assert (cache.altered, cache.vacuous, cache.affected_tokens, cache.keep_ratio) == (True, False, 0, None)
    assert streaming.ppl == pytest.approx(_perplexity(), rel=1e-9)


def _perplexity() -> float:
    """Perplexity under kvpress's StreamingLLMPress, by its documented use and true positions."""
    model, tokenizer = load("reference", dtype="float64")
    ids = load_text("reference", tokenizer, samples=1, tokens=TOKENS)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        with StreamingLLMPress(0.5, n_sink=4)(model):
            logits = [model(ids[:, :PROMPT], **using(cache)).logits[:, -1]]
        for at in range(PROMPT, TOKENS - 1):
            output = model(ids[:, at : at + 1], position_ids=torch.tensor([[at]]), **using(cache))
            logits.append(output.logits[:, -1])
    nll = torch.nn.functional.cross_entropy(torch.cat(logits), ids[0, PROMPT:])
    return float(nll.exp())
