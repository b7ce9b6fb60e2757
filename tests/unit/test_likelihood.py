"""Perplexity and its counts: equal to closed forms, plain Python and the exact entropy of a language."""

import importlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from pressgauge import KeyDiffPress, KnormPress, Perplexity, Press, RandomPress, StreamingLLMPress, perplexity
from pressgauge.conformance import architectures, oracle
from pressgauge.conformance.versions import using
from pressgauge.reference.language import document

NAMES = sorted(architectures.ARCHITECTURES)
METHODS = ("onepass", "stepwise", "plain")
COMPRESSED = ("onepass", "stepwise")
"""Methods with a press at work."""
NEVER = 2**31 - 1

Reference = Callable[..., tuple[PreTrainedModel, PreTrainedTokenizerBase]]

COMPRESSING: dict[str, Press] = {
    "knorm": KnormPress(0.5, prune_after=8),
    "knorm-step": KnormPress(0.8, prune_after=8, schedule="step", recent=2, sinks=1),
    "knorm-recent": KnormPress(0.3, prune_after=6, skip_layers=(1,), recent=3),
    "keydiff": KeyDiffPress(0.5, prune_after=8, recent=1),
    "random": RandomPress(0.6, prune_after=8, seed=5),
    "streaming-llm": StreamingLLMPress(0.5, prune_after=10),
}


def minus_log_probability(logits: list[float], target: int) -> float:
    """NLL in plain Python."""
    top = max(logits)
    return top + math.log(math.fsum(math.exp(logit - top) for logit in logits)) - logits[target]


def by_hand(model: PreTrainedModel, row: list[int]) -> list[float]:
    """NLL of the tokens 1, 2, ... of one unpadded row, each by the logits of its predecessor."""
    with torch.no_grad():
        logits: list[list[float]] = model(torch.tensor([row]), use_cache=False).logits[0].tolist()
    return [minus_log_probability(logits[i - 1], row[i]) for i in range(1, len(row))]


# Correct without compression


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prompt", [1, 6])
@pytest.mark.parametrize("name", NAMES)
def test_nll_is_minus_the_log_of_the_softmax_at_the_token_before(name: str, prompt: int, method: Any) -> None:
    """The NLL of an uncompressed text equals that in plain Python from the model's logits."""
    model = architectures.shared(name)
    ids = architectures.tokens(2, 14)
    result = perplexity(model, ids, None, prompt, method)
    expected = torch.tensor([by_hand(model, row)[prompt - 1 :] for row in ids.tolist()], dtype=torch.float64)
    torch.testing.assert_close(result.nll, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prompt", [1, 4, 9])
def test_a_padded_row_has_the_nll_that_it_has_alone_and_nan_where_it_has_no_token(prompt: int, method: Any) -> None:
    """A padded row has the NLL of the row alone, and NaN at padding and its first token."""
    model = architectures.shared("llama")
    lengths = [12, 3, 8]
    ids, mask = architectures.padded(lengths)
    result = perplexity(model, ids, None, prompt, method, attention_mask=mask)
    expected = torch.full((3, 12), math.nan, dtype=torch.float64)
    for row, length in enumerate(lengths):
        start = 12 - length
        expected[row, start + 1 :] = torch.tensor(by_hand(model, ids[row, start:].tolist()), dtype=torch.float64)
    torch.testing.assert_close(result.nll, expected[:, prompt:], rtol=0, atol=1e-12, equal_nan=True)
    assert result.scored_tokens == sum(min(length - 1, 12 - prompt) for length in lengths)


def counting_model() -> PreTrainedModel:
    """A model with known logits: after token t, token t + 1 has the logit 9 and all others 0.

    Nothing is added to the embeddings, which are unit vectors, so a norm scales them to length 8 in 64 dimensions.
    """
    model: PreTrainedModel = architectures.build("llama", hidden_size=64, num_attention_heads=8, rms_norm_eps=0.0)
    size = architectures.VOCABULARY
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weight.zero_()
        embedding.weight.copy_(torch.eye(size, 64))
        head.weight.zero_()
        head.weight[[(token + 1) % size for token in range(size)], range(size)] = 9 / 8
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prompt", [1, 7])
def test_each_token_is_scored_by_the_pass_before_its_own(prompt: int, method: Any) -> None:
    """A model that counts is certain of a text that counts, and wrong about a constant one."""
    model = counting_model()
    text = torch.stack([torch.arange(5, 30), torch.full((25,), 11)])
    result = perplexity(model, text, None, prompt, method)
    rest = math.log(math.exp(9) + architectures.VOCABULARY - 1)
    expected = torch.tensor([[rest - 9], [rest]], dtype=torch.float64).expand(2, 25 - prompt)
    torch.testing.assert_close(result.nll, expected, rtol=0, atol=1e-12)
    assert result.hits.tolist() == [[True] * (25 - prompt), [False] * (25 - prompt)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_perplexity_of_the_reference_model_is_near_the_exact_entropy_and_not_below(
    reference: Reference, dtype: str
) -> None:
    """The NLL of a trained model is near the exact entropy and not below it.

    Over these 6,132 tokens the difference has a standard deviation of about .003 nats.
    """
    model, _ = reference("reference", dtype=dtype)
    texts = [document(seed, 512) for seed in range(12)]
    result = perplexity(model, torch.tensor([text.tokens for text in texts]), method="plain")
    exact = torch.tensor([text.nll[1:] for text in texts], dtype=torch.float64)
    excess = float(result.nll.mean() - exact.mean())
    assert -0.01 < excess < 0.06


@pytest.mark.parametrize("method", COMPRESSED)
def test_perplexity_of_the_reference_model_is_the_plain_one(reference: Reference, method: Any) -> None:
    """On a trained float64 model without evictions, every way of feeding a text gives the same NLL."""
    model, _ = reference("reference", dtype="float64")
    ids = torch.tensor([document(1, 64).tokens])
    plain = perplexity(model, ids, method="plain")
    torch.testing.assert_close(perplexity(model, ids, method=method).nll, plain.nll, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", COMPRESSED)
@pytest.mark.parametrize("press", [None, KnormPress(1, prune_after=4)], ids=["uncompressed", "ratio-1"])
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=4)
@given(lengths=st.lists(st.integers(2, 18), min_size=1, max_size=3), data=st.data())
def test_every_method_without_compression_is_plain(
    name: str, press: Press | None, method: Any, lengths: list[int], data: st.DataObject
) -> None:
    """Without a press or with r = 1, every method gives the NLL of the plain model."""
    model = architectures.shared(name)
    ids, mask = architectures.padded(lengths)
    prompt = data.draw(st.integers(1, max(lengths) - 1))
    result = perplexity(model, ids, press, prompt, method, attention_mask=mask)
    plain = perplexity(model, ids, None, prompt, "plain", attention_mask=mask)
    torch.testing.assert_close(result.nll, plain.nll, rtol=0, atol=1e-9, equal_nan=True)
    assert torch.equal(result.hits, plain.hits)


# Correct under compression


def compressed_by_hand(
    model: PreTrainedModel, row: list[int], press: Press, prompt: int
) -> tuple[list[float], int, list[int]]:
    """Decode one row, evicting from the cache between passes by the rules.

    Returns:
        The NLL of the scored tokens, the number of evictions, and the number held by each layer at the end.
    """
    cache = DynamicCache(config=model.config)
    layers: list[Any] = list(cache.layers)
    nll, evictions, seen = [], 0, 0
    with torch.no_grad():
        for length in [prompt] + [1] * (len(row) - prompt):
            ids, places = torch.tensor([row[seen : seen + length]]), torch.arange(seen, seen + length)[None]
            logits = model(ids, position_ids=places, **using(cache)).logits[0, -1].tolist()
            is_prompt = seen < prompt
            seen += length
            if seen < len(row):
                nll.append(minus_log_probability(logits, row[seen]))
            for index, layer in enumerate(layers):
                keys = layer.keys
                held = keys.shape[2]
                rules = oracle.Rules(press.keep_ratio, press.prune_after, press.schedule, press.sinks, press.recent)
                target = rules.target(seen, held)
                if index in press.skip_layers or target == held or not (is_prompt or press.schedule != "prefill"):
                    continue
                # Entries are in the order of the text, so indices give the first, the last and the earlier.
                rows = list(range(held))
                kept = [
                    oracle.retained(rules, rows, oracle.norm_scores(head)(rows), target, held)
                    for head in keys[0].tolist()
                ]
                chosen = torch.tensor(kept)[None, :, :, None].expand(-1, -1, -1, keys.shape[3])
                layer.keys, layer.values = keys.gather(2, chosen), layer.values.gather(2, chosen)
                evictions += (held - target) * len(kept)
    return nll, evictions, [layer.keys.shape[2] for layer in layers]


BY_HAND: dict[str, Press] = {
    "budget": KnormPress(0.5, prune_after=6),
    "budget-recent": KnormPress(0.7, prune_after=6, recent=4, skip_layers=(0,)),
    "budget-sinks": KnormPress(0.2, prune_after=5, sinks=3),
    "step": KnormPress(0.9, prune_after=7, schedule="step"),
    "step-deep": KnormPress(0.3, prune_after=7, schedule="step", recent=1),
    "prefill": KnormPress(0.45, prune_after=3, schedule="prefill", skip_layers=(1,)),
}


@pytest.mark.parametrize("method", COMPRESSED)
@pytest.mark.parametrize("prompt", [1, 10])
@pytest.mark.parametrize(
    ("press", "name"),
    [*((press, "llama") for press in BY_HAND.values()), (BY_HAND["budget"], "neox")],
    ids=[*BY_HAND, "budget-neox"],
)
def test_compression_equals_a_separate_decoding_loop(press: Press, name: str, prompt: int, method: Any) -> None:
    """NLL, number of evictions and held entries equal those of a separate decoding loop in float64."""
    if press.schedule == "prefill":
        prompt = 10  # a shorter one could never act
    model = architectures.shared(name)
    ids = architectures.tokens(1, 26, seed=4)
    result = perplexity(model, ids, press, prompt, method)
    nll, evictions, held = compressed_by_hand(model, ids[0].tolist(), press, prompt)
    torch.testing.assert_close(result.nll, torch.tensor([nll], dtype=torch.float64), rtol=0, atol=1e-9)
    assert (result.evictions, result.held) == (evictions, tuple(held))
    assert evictions > 0


@pytest.mark.parametrize("method", COMPRESSED)
@pytest.mark.parametrize("prompt", [1, 9])
@pytest.mark.parametrize("press", COMPRESSING.values(), ids=COMPRESSING)
def test_rows_are_scored_under_compression_as_they_are_alone(press: Press, prompt: int, method: Any) -> None:
    """A padded row has the NLL, hits and affected tokens of the row alone."""
    model = architectures.shared("llama")
    lengths = [24, 4, 15]
    ids, mask = architectures.padded(lengths)
    together = perplexity(model, ids, press, prompt, method, attention_mask=mask)
    evictions = 0
    for row, length in enumerate(lengths):
        start = 24 - length
        own = max(1, prompt - start)
        if own >= length:
            continue  # every token of this row belongs to the prompt
        alone = perplexity(model, ids[row : row + 1, start:], press, own, method)
        scored = length - own
        torch.testing.assert_close(together.nll[row, -scored:], alone.nll[0], rtol=0, atol=1e-9)
        assert together.nll[row, :-scored].isnan().all()
        assert torch.equal(together.hits[row, -scored:], alone.hits[0])
        assert torch.equal(together.affected[row, -scored:], alone.affected[0])
        evictions += alone.evictions
    assert together.evictions == evictions > 0


def test_nll_does_not_depend_on_the_number_of_rows_per_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """If logits of all rows exceed the memory limit, rows are fed in groups with the same result."""
    model = architectures.shared("llama")
    ids, mask = architectures.padded([18, 9, 18, 18, 9])
    expected = perplexity(model, ids, COMPRESSING["knorm"], 3, attention_mask=mask)
    for rows in (1, 2):
        module = importlib.import_module("pressgauge.likelihood")  # the package's attribute is the function
        monkeypatch.setattr(module, "_MOST_LOGITS", rows * 18 * architectures.VOCABULARY)
        result = perplexity(model, ids, COMPRESSING["knorm"], 3, attention_mask=mask)
        torch.testing.assert_close(result.nll, expected.nll, rtol=0, atol=1e-9, equal_nan=True)
        assert all(map(torch.equal, result.evicted_at, expected.evicted_at))
        assert (result.held, result.kv_bytes) == (expected.held, expected.kv_bytes)


# Counting


def test_ppl_is_of_the_mean_over_all_tokens_not_a_mean_over_rows() -> None:
    """Rows are weighted by their number of tokens."""
    model = architectures.shared("llama")
    ids, mask = architectures.padded([16, 4])
    result = perplexity(model, ids, None, attention_mask=mask)
    tokens = [nll for row in result.nll.tolist() for nll in row if not math.isnan(nll)]
    assert len(tokens) == result.scored_tokens == 18
    assert result.ppl == pytest.approx(math.exp(math.fsum(tokens) / 18), rel=1e-12)
    of_rows = [math.exp(math.fsum(row) / len(row)) for row in (tokens[:15], tokens[15:])]
    assert abs(sum(of_rows) / 2 - result.ppl) > 0.1, "these rows are to tell the two apart"


def test_accuracy_is_the_top_1_share_of_scored_tokens() -> None:
    """Accuracy counts padding neither as a hit nor as a token."""
    model = counting_model()
    counts = torch.arange(3, 15)
    text = torch.stack([counts, counts, counts])
    text[1, 6] = 40  # wrong, and so is what is expected after it
    mask = torch.ones_like(text)
    mask[2, :9] = 0  # two tokens to score are left
    result = perplexity(model, text, None, 3, attention_mask=mask)
    assert result.scored_tokens == 9 + 9 + 2
    assert result.accuracy == (9 + 7 + 2) / 20


@pytest.mark.parametrize("method", METHODS)
def test_nan_is_counted_and_makes_the_perplexity_nan(method: Any) -> None:
    """A token scored NaN by a broken model is counted, unlike padding."""
    model = architectures.build("llama")
    embedding: Any = model.get_input_embeddings()
    with torch.no_grad():
        embedding.weight[7] = torch.nan
    ids, mask = architectures.padded([12, 6])
    ids = ids.where(ids != 7, 8)
    whole = perplexity(model, ids, None, 1, method, attention_mask=mask)
    ids[0, 4] = 7
    result = perplexity(model, ids, None, 1, method, attention_mask=mask)
    # In one forward pass the tokens before it are NaN as well: masked values are weighted 0, and 0 times NaN is NaN.
    assert result.nll[0, 4:].isnan().all()
    assert torch.equal(result.nll[1, 6:], whole.nll[1, 6:])
    assert result.scored.tolist() == [[True] * 11, [False] * 6 + [True] * 5]
    assert result.scored_tokens == whole.scored_tokens == 11 + 5
    assert math.isnan(result.ppl)
    assert math.isfinite(whole.ppl)


@pytest.mark.parametrize("method", COMPRESSED)
@pytest.mark.parametrize("prompt", [1, 12])
@pytest.mark.parametrize("press", COMPRESSING.values(), ids=COMPRESSING)
def test_affected_tokens_are_those_after_an_eviction(press: Press, prompt: int, method: Any) -> None:
    """A token is affected if the query before it comes after an eviction of its row, by ``evicted_at``."""
    model = architectures.shared("llama")
    ids, mask = architectures.padded([26, 17])
    result = perplexity(model, ids, press, prompt, method, attention_mask=mask)
    expected = [[False] * (26 - prompt) for _ in range(2)]
    for row, padding in ((0, 0), (1, 9)):
        evicted = [at for table in result.evicted_at for head in table[row].tolist() for at in head[padding:]]
        for token in range(max(prompt, padding + 1), 26):
            expected[row][token - prompt] = any(at <= token - 1 for at in evicted)
    assert result.affected.tolist() == expected
    assert result.affected_tokens == sum(map(sum, expected)) > 0


@pytest.mark.parametrize("method", COMPRESSED)
def test_evictions_are_the_finite_entries_of_evicted_at(method: Any) -> None:
    """Held entries and padding are not counted as evictions."""
    ids, mask = architectures.padded([20, 11])
    result = perplexity(architectures.shared("llama"), ids, COMPRESSING["knorm"], 1, method, attention_mask=mask)
    numbers = [at for table in result.evicted_at for row in table.tolist() for head in row for at in head]
    assert result.evictions == sum(0 < at < NEVER for at in numbers)
    # Three layers of two KV heads: of 20 tokens max(8, 10) are retained, of 11 tokens max(8, 6).
    assert result.evictions == 3 * 2 * ((20 - 10) + (11 - 8))


@pytest.mark.parametrize("method", COMPRESSED)
def test_the_first_eviction_affects_the_token_after_the_next(method: Any) -> None:
    """With P = 8 the ninth token's pass evicts: it scores token 9, and token 10 is the first affected."""
    ids = architectures.tokens(1, 14)
    result = perplexity(architectures.shared("llama"), ids, KnormPress(0.1, prune_after=8), 1, method)
    assert result.affected.tolist() == [[False] * 9 + [True] * 4]


@pytest.mark.parametrize("method", COMPRESSED)
def test_fields_have_their_shapes_and_dtypes(method: Any) -> None:
    """NLL is float64 on the CPU, with one table ``[B, K, T]`` and one number held per layer, and bytes of the held
    entries."""
    press = KnormPress(0.5, prune_after=6, skip_layers=(2,))
    result = perplexity(architectures.shared("llama"), architectures.tokens(3, 20), press, 4, method)
    assert (result.nll.shape, result.nll.dtype, result.nll.device.type) == ((3, 16), torch.float64, "cpu")
    for field in (result.scored, result.hits, result.affected):
        assert (field.shape, field.dtype, field.device.type) == ((3, 16), torch.bool, "cpu")
    assert [(table.shape, table.dtype) for table in result.evicted_at] == [((3, 2, 20), torch.int32)] * 3
    assert result.held == (10, 10, 20)
    exact = 3 * 2 * 8 * 8 * 2 * (10 + 10 + 20)  # rows, KV heads, dimension, bytes, keys and values, entries
    assert exact <= result.kv_bytes <= exact * 1.02


def test_a_plain_result_has_no_cache() -> None:
    """A pass without a cache holds and evicts nothing."""
    result = perplexity(architectures.shared("llama"), architectures.tokens(2, 9), None, 4, "plain")
    assert (result.nll.shape, result.nll.dtype) == ((2, 5), torch.float64)
    assert (result.held, result.kv_bytes, result.evicted_at, result.evictions) == ((), 0, (), 0)
    assert result.affected_tokens == 0


@pytest.mark.parametrize("method", COMPRESSED)
def test_an_uncompressed_cache_holds_every_token(method: Any) -> None:
    """Without a press, all layers hold all tokens."""
    result = perplexity(architectures.shared("llama"), architectures.tokens(2, 9), method=method)
    assert (result.held, result.kv_bytes) == ((9, 9, 9), 2 * 2 * 8 * 8 * 2 * 27)
    assert (result.evictions, result.affected_tokens) == (0, 0)


@pytest.mark.parametrize("method", METHODS)
def test_progress_changes_nothing(method: Any) -> None:
    """A progress bar does not change the result."""
    model, ids = architectures.shared("llama"), architectures.tokens(2, 14)
    shown = perplexity(model, ids, COMPRESSING["knorm"], 2, method, progress=True)
    assert torch.equal(shown.nll, perplexity(model, ids, COMPRESSING["knorm"], 2, method).nll)


# Vacuous results


def of(press: Press | None, method: Any) -> Perplexity:
    """A result on 14 tokens."""
    return perplexity(architectures.shared("llama"), architectures.tokens(1, 14), press, 1, method)


@pytest.mark.parametrize("method", COMPRESSED)
def test_a_result_is_vacuous_if_prune_after_is_never_exceeded(method: Any) -> None:
    """A result without evictions is vacuous."""
    result = of(KnormPress(0.5, prune_after=14), method)
    assert (result.vacuous, result.evictions, result.affected_tokens) == (True, 0, 0)


@pytest.mark.parametrize("method", COMPRESSED)
def test_a_result_is_vacuous_if_only_the_last_pass_evicts(method: Any) -> None:
    """A result is vacuous if no scored token follows an eviction."""
    result = of(KnormPress(0.5, prune_after=13), method)
    assert (result.vacuous, result.evictions, result.affected_tokens) == (True, 3 * 2, 0)


@pytest.mark.parametrize("method", COMPRESSED)
def test_a_result_is_not_vacuous_as_soon_as_one_token_is_affected(method: Any) -> None:
    """One affected token is enough for a result."""
    result = of(KnormPress(0.5, prune_after=11), method)
    assert (result.vacuous, result.affected_tokens) == (False, 1)


def test_a_plain_result_with_a_press_is_vacuous() -> None:
    """A method without a cache gives a vacuous result for a press."""
    assert of(KnormPress(0.5, prune_after=2), "plain").vacuous
    assert torch.equal(of(KnormPress(0.5, prune_after=2), "plain").nll, of(None, "plain").nll)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("press", [None, KnormPress(1, prune_after=2), KnormPress(1.0)], ids=["none", "1", "1.0"])
def test_an_uncompressed_result_is_never_vacuous(press: Press | None, method: Any) -> None:
    """Results without a press or with r = 1 are not vacuous."""
    assert not of(press, method).vacuous


# Refusals

IDS = architectures.tokens(2, 14)

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "one row without a batch": ({"input_ids": IDS[0]}, r"input_ids must be \[batch, tokens\] .* got \[14\]"),
    "no rows": ({"input_ids": IDS[:0]}, r"with at least two tokens, got \[0, 14\]"),
    "one token": ({"input_ids": IDS[:, :1]}, r"with at least two tokens, got \[2, 1\]"),
    "no prompt": ({"prompt": 0}, "prompt must be at least 1 and leave one of the 14 tokens to score, got 0"),
    "negative prompt": ({"prompt": -3}, "prompt must be at least 1 .* got -3"),
    "nothing after the prompt": ({"prompt": 14}, "leave one of the 14 tokens to score, got 14"),
    "nothing but padding": (
        {"attention_mask": torch.eye(14, dtype=torch.long)[[13, 13]]},
        "no token after the first 1 has a token before it: the rows are nothing but padding",
    ),
    "unknown method": ({"method": "guess"}, "method must be one of .*stepwise.*, got 'guess'"),
    "short mask": ({"attention_mask": torch.ones(2, 13)}, r"attention_mask must be \[2, 14\] .* got \[2, 13\]"),
    "mask of one row": ({"attention_mask": torch.ones(1, 14)}, r"attention_mask must be \[2, 14\] .* got \[1, 14\]"),
}


@pytest.mark.parametrize("press", [None, COMPRESSING["knorm"]], ids=["uncompressed", "knorm"])
@pytest.mark.parametrize(("arguments", "sentence"), REFUSED.values(), ids=REFUSED)
def test_values_out_of_range_are_refused(arguments: dict[str, Any], sentence: str, press: Press | None) -> None:
    """Values out of range are refused with the value and the rule."""
    with pytest.raises(ValueError, match=sentence):
        perplexity(architectures.shared("llama"), press=press, **{"input_ids": IDS, **arguments})


@pytest.mark.parametrize("prompt", [1, 5, 8])
def test_a_prompt_that_prefill_can_never_act_on_is_refused(prompt: int) -> None:
    """Under ``prefill``, a prompt of P tokens or fewer is refused."""
    press = KnormPress(0.5, prune_after=8, schedule="prefill")
    with pytest.raises(ValueError, match=f"never with a prompt of {prompt} tokens and prune_after=8"):
        perplexity(architectures.shared("llama"), IDS, press, prompt)


def test_a_prompt_of_one_token_more_than_prune_after_is_measured() -> None:
    """A prompt of P + 1 tokens is measured, and retains ceil(.5 * 9) of 9 entries."""
    result = perplexity(architectures.shared("llama"), IDS, KnormPress(0.5, prune_after=8, schedule="prefill"), 9)
    assert result.evictions == 2 * 3 * 2 * (9 - 5)
    assert not result.vacuous


def test_prefill_counts_a_padded_prompt_by_its_own_tokens() -> None:
    """Padding does not count towards the length of a prompt."""
    mask = torch.ones_like(IDS)
    mask[:, :4] = 0
    press = KnormPress(0.5, prune_after=8, schedule="prefill")
    with pytest.raises(ValueError, match="never with a prompt of 8 tokens"):
        perplexity(architectures.shared("llama"), IDS, press, 12, attention_mask=mask)


def test_padding_that_is_not_on_the_left_is_refused() -> None:
    """Padding after or between tokens is refused."""
    mask = torch.ones_like(IDS)
    mask[0, 5] = 0
    with pytest.raises(ValueError, match="row 0 has padding between or after its tokens: pad on the left"):
        perplexity(architectures.shared("llama"), IDS, COMPRESSING["knorm"], attention_mask=mask)
