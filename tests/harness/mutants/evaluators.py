"""Broken evaluators, each with the law that must kill it, what the finding has to name, and its sound twin."""

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy, log_softmax

from harness.mutants import right_evaluators as right
from harness.mutants.mutant import Mutant
from harness.mutants.right_evaluators import evict, new_cache, step
from measuring import test_evaluators as laws
from pressgauge import KnormPress, cache_argument
from pressgauge.measuring.evaluators import Evaluator
from support.laws import Law


def tokens(tokenizer: Any, text: str) -> Any:
    """Ids ``[1, T]``."""
    return tokenizer(text, return_tensors="pt").input_ids


def decoded(model: Any, ids: Any, keep_ratio: float, prune_after: int, skip: tuple[int, ...] = ()) -> Any:
    """Logits ``[T - 1, V]`` of a text decoded token by token with a compressed cache."""
    cache, logits = new_cache(), []
    for t in range(ids.shape[1] - 1):
        logits.append(step(model, ids[:, t : t + 1], cache, t)[0, -1].float())
        evict(cache, keep_ratio, prune_after, skip, t + 1)
    return torch.stack(logits)


# M1 to M3: what is evicted never meets a query


def one_forward_under_a_press(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """The report's function: the loss of a single pass, with the press attached."""
    ids = tokens(tokenizer, text)
    with torch.no_grad(), KnormPress(keep_ratio, prune_after=prune_after)(model):
        return math.exp(float(model(ids, labels=ids).loss))


def no_cache(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """Each token is predicted by a pass over all before it; the compressed cache is made and not used."""
    ids = tokens(tokenizer, text)
    cache = new_cache()
    step(model, ids, cache, 0)
    evict(cache, keep_ratio, prune_after, (), ids.shape[1])
    with torch.no_grad():
        logits = [model(ids[:, :t], use_cache=False).logits[:, -1] for t in range(1, ids.shape[1])]
    return math.exp(float(cross_entropy(torch.cat(logits).float(), ids[0, 1:])))


def never_installed(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """The press is made and never attached."""
    press = KnormPress(keep_ratio, prune_after=prune_after)
    assert press.keep_ratio == keep_ratio
    ids = tokens(tokenizer, text)
    return math.exp(float(cross_entropy(decoded(model, ids, 1, prune_after), ids[0, 1:])))


def threshold_never_exceeded(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """The report's function: a default of 512 wins over what was asked for."""
    ids = tokens(tokenizer, text)
    logits = decoded(model, ids, keep_ratio, max(prune_after, 512))
    return math.exp(float(cross_entropy(logits, ids[0, 1:])))


def short_chunks(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """Texts are cut into pieces that no threshold is exceeded by, each with a cache of its own."""
    ids = tokens(tokenizer, text)
    total, count = 0.0, 0
    for start in range(0, ids.shape[1] - 1, 8):
        piece = ids[:, start : start + 8]
        if piece.shape[1] > 1:
            logits = decoded(model, piece, keep_ratio, prune_after)
            total += float(cross_entropy(logits, piece[0, 1:], reduction="sum"))
            count += piece.shape[1] - 1
    return math.exp(total / count)


def strided_under_a_press(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """Windows under an attached press, each one pass."""
    with KnormPress(keep_ratio, prune_after=prune_after)(model):
        return right.strided(model, tokenizer, text)


def scored_by_its_own_pass(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """The report's function: the text is compressed as it is scored, and the cache afterwards thrown away."""
    ids = tokens(tokenizer, text)
    cache = new_cache()
    logits = step(model, ids, cache, 0)
    evict(cache, keep_ratio, prune_after, (), ids.shape[1])
    return math.exp(float(cross_entropy(logits[0, :-1].float(), ids[0, 1:])))


# Positions


def positions_from_held(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """The report's function: a query's position is the number of entries held."""
    ids = tokens(tokenizer, text)
    cache, nll = new_cache(), []
    for t in range(ids.shape[1] - 1):
        held = cache.get_seq_length()
        logits = step(model, ids[:, t : t + 1], cache, held)
        nll.append(cross_entropy(logits[:, -1].float(), ids[:, t + 1]))
        evict(cache, keep_ratio, prune_after, (), t + 1)
    return float(torch.stack(nll).mean().exp())


# Which logit scores which token


def no_shift(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """Logits are compared with the tokens that were fed."""
    ids = tokens(tokenizer, text)
    logits = decoded(model, ids, keep_ratio, prune_after)
    return math.exp(float(cross_entropy(logits, ids[0, :-1])))


def shifted_twice(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """Labels are shifted by hand, and the loss shifts them again."""
    ids = tokens(tokenizer, text)
    logits, labels = decoded(model, ids, keep_ratio, prune_after), ids[0, 1:]
    return math.exp(float(cross_entropy(logits[:-1], labels[1:])))


# Which tokens are scored


def prompt_scored(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """All tokens are scored where those after the prompt are meant."""
    return right.token_by_token(model, tokenizer, text, keep_ratio=keep_ratio, prune_after=prune_after)


def prompt_forgotten(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """The rest is scored by a new cache."""
    ids = tokens(tokenizer, text)[:, 16:]
    return math.exp(float(cross_entropy(decoded(model, ids, keep_ratio, prune_after), ids[0, 1:])))


def seam_lost(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """The last logits of a chunk, which score the first token of the next, are dropped."""
    ids = tokens(tokenizer, text)
    cache, total, count = new_cache(), 0.0, 0
    for start in range(0, ids.shape[1], 8):
        piece = ids[:, start : start + 8]
        logits = step(model, piece, cache, start)
        evict(cache, keep_ratio, prune_after, (), start + piece.shape[1])
        total += float(cross_entropy(logits[0, :-1].float(), piece[0, 1:], reduction="sum"))
        count += piece.shape[1] - 1
    return math.exp(total / count)


def affected_only(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> dict[str, float]:
    """The compressed arm scores the tokens after the threshold, the other one all."""
    ids = tokens(tokenizer, text)
    first = 0 if keep_ratio == 1 else prune_after + 1
    logits = decoded(model, ids, keep_ratio, prune_after)[first:]
    return {"ppl": math.exp(float(cross_entropy(logits, ids[0, 1 + first :]))), "tokens": len(logits)}


def arms_fed_differently(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """One pass for the uncompressed arm, single tokens for the other."""
    ids = tokens(tokenizer, text)
    if keep_ratio == 1:
        with torch.no_grad():
            return math.exp(float(model(ids, labels=ids).loss))
    return math.exp(float(cross_entropy(decoded(model, ids, keep_ratio, prune_after), ids[0, 1:])))


def from_the_threshold_on(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """The compressed arm is scored from the threshold on, one token more than is affected."""
    ids = tokens(tokenizer, text)
    nll = cross_entropy(decoded(model, ids, keep_ratio, prune_after), ids[0, 1:], reduction="none")
    return float(nll[prune_after if keep_ratio < 1 else 0 :].mean().exp())


def mean_of_pieces(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """The mean of the perplexities of pieces of 10 tokens, however they were fed."""
    ids = tokens(tokenizer, text)
    logits = decoded(model, ids, keep_ratio, prune_after)
    pieces = zip(logits.split(10), ids[0, 1:].split(10), strict=True)
    found = [math.exp(float(cross_entropy(own, targets))) for own, targets in pieces]
    return sum(found) / len(found)


def truncated(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """The text is truncated to the longest input, and its NLL divided by its whole length."""
    ids = tokens(tokenizer, text)
    part = ids[:, :32]
    total = cross_entropy(decoded(model, part, keep_ratio, prune_after), part[0, 1:], reduction="sum")
    return math.exp(float(total) / (ids.shape[1] - 1))


def count_of_columns(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> dict[str, float]:
    """The number of tokens is that of the text, its first one included."""
    ids = tokens(tokenizer, text)
    nll = cross_entropy(decoded(model, ids, keep_ratio, prune_after), ids[0, 1:])
    return {"ppl": math.exp(float(nll)), "tokens": ids.shape[1]}


# How the NLL are put together


def mean_of_chunks(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """The mean of the perplexities of chunks."""
    ids = tokens(tokenizer, text)
    cache, found, last = new_cache(), [], None
    for start in range(0, ids.shape[1], 8):
        logits = step(model, ids[:, start : start + 8], cache, start)[0].float()
        evict(cache, keep_ratio, prune_after, (), min(start + 8, ids.shape[1]))
        scores = logits if last is None else torch.cat([last, logits])
        targets = ids[0, start + (last is None) : start + 8]
        found.append(math.exp(float(cross_entropy(scores[: len(targets)], targets))))
        last = logits[-1:]
    return sum(found) / len(found)


def base_2(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """2 to the power of a cross entropy in nats."""
    ids = tokens(tokenizer, text)
    return 2 ** float(cross_entropy(decoded(model, ids, keep_ratio, prune_after), ids[0, 1:]))


def bits_as_nats(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> dict[str, float]:
    """An NLL in bits that is reported as one in nats."""
    ids = tokens(tokenizer, text)
    return {"nll": float(cross_entropy(decoded(model, ids, keep_ratio, prune_after), ids[0, 1:])) / math.log(2)}


def mean_of_exponentials(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """The mean of the tokens' perplexities."""
    ids = tokens(tokenizer, text)
    nll = cross_entropy(decoded(model, ids, keep_ratio, prune_after), ids[0, 1:], reduction="none")
    return float(nll.exp().mean())


def windows_alike(model: Any, tokenizer: Any, text: str, *, window: int = 32, stride: int = 16) -> float:
    """The mean of the windows' losses, whatever the number of tokens that they score."""
    ids = tokens(tokenizer, text)
    losses, end_before = [], 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + window, ids.shape[1])
        target = ids[:, begin:end].clone()
        target[:, : -(end - end_before)] = -100
        with torch.no_grad():
            losses.append(model(ids[:, begin:end], labels=target).loss)
        end_before = end
        if end == ids.shape[1]:
            break
    return float(torch.stack(losses).mean().exp())


def disjoint_windows(model: Any, tokenizer: Any, text: str, *, window: int = 16) -> float:
    """Windows side by side, called the perplexity of the text."""
    ids = tokens(tokenizer, text)
    total, count = 0.0, 0
    for begin in range(0, ids.shape[1], window):
        piece = ids[:, begin : begin + window]
        with torch.no_grad():
            total += float(model(piece, labels=piece).loss) * (piece.shape[1] - 1)
        count += piece.shape[1] - 1
    return math.exp(total / count)


# Rows


def _rows(model: Any, tokenizer: Any, texts: list[str], *, masked: bool = True) -> tuple[Any, Any, Any]:
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    mask = batch.attention_mask
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    given = {"attention_mask": mask, "position_ids": positions} if masked else {}
    with torch.no_grad():
        logits = model(batch.input_ids, **given).logits
    nll = cross_entropy(logits[:, :-1].transpose(1, 2).float(), batch.input_ids[:, 1:], reduction="none")
    return nll, mask, batch.input_ids


def rows_right(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """The mean over all tokens of all texts."""
    nll, mask, _ = _rows(model, tokenizer, texts)
    scored = (mask[:, 1:] * mask[:, :-1]).bool()
    if not scored.any():
        raise ValueError("no text has two tokens")
    return float(nll[scored].mean().exp())


def padding_scored(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """Padding slots are in the mean."""
    nll, _, _ = _rows(model, tokenizer, texts)
    return float(nll.mean().exp())


def one_too_many(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """The first token of a short text counts, as if padding had predicted it."""
    nll, mask, _ = _rows(model, tokenizer, texts)
    return float(nll[mask[:, 1:].bool()].mean().exp())


def mean_of_rows(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """The mean of the texts' perplexities."""
    nll, mask, _ = _rows(model, tokenizer, texts)
    scored = mask[:, 1:] * mask[:, :-1]
    return float(((nll * scored).sum(-1) / scored.sum(-1)).exp().mean())


def mask_forgotten(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """The model is not told what is padding."""
    nll, mask, _ = _rows(model, tokenizer, texts, masked=False)
    return float(nll[(mask[:, 1:] * mask[:, :-1]).bool()].mean().exp())


def columns_in_the_divisor(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """The sum over scored tokens, over all columns."""
    nll, mask, _ = _rows(model, tokenizer, texts)
    scored = mask[:, 1:] * mask[:, :-1]
    return math.exp(float((nll * scored).sum()) / nll.numel())


# State


def press_that_stays(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """A press is attached for good: the arm after it is compressed, too."""
    if keep_ratio < 1 and not hasattr(model, "own_press"):
        model.own_press = (keep_ratio, prune_after)
    ratio, threshold = getattr(model, "own_press", (keep_ratio, prune_after))
    return right.token_by_token(model, tokenizer, text, keep_ratio=ratio, prune_after=threshold)


_CACHES: dict[int, Any] = {}


def cache_that_stays(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """One cache for all calls with a model."""
    ids = tokens(tokenizer, text)
    held = _CACHES.setdefault(id(model), (model, new_cache()))[1]
    seen, nll = held.get_seq_length(), []
    for t in range(ids.shape[1] - 1):
        logits = step(model, ids[:, t : t + 1], held, seen + t)
        nll.append(cross_entropy(logits[:, -1].float(), ids[:, t + 1]))
        evict(held, keep_ratio, prune_after, (), t + 1)
    return float(torch.stack(nll).mean().exp())


_RESULTS: dict[Any, float] = {}


def result_reused(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """Results are kept by text; the ratio is not in the key."""
    key = id(model), text
    if key not in _RESULTS:
        found = right.token_by_token(model, tokenizer, text, keep_ratio=keep_ratio, prune_after=prune_after)
        _RESULTS[key] = found
    return _RESULTS[key]


def result_reused_by_ratio(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """Results are kept by text and ratio; the threshold is not in the key."""
    key = id(model), text, keep_ratio
    if key not in _RESULTS:
        found = right.token_by_token(model, tokenizer, text, keep_ratio=keep_ratio, prune_after=prune_after)
        _RESULTS[key] = found
    return _RESULTS[key]


def ratio_inverted(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """The ratio is taken for the share that is evicted."""
    ratio = 1 if keep_ratio == 1 else 1 - keep_ratio
    return right.token_by_token(model, tokenizer, text, keep_ratio=ratio, prune_after=prune_after)


def ratio_ignored(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """Below 1 every ratio is a half."""
    ratio = 1 if keep_ratio == 1 else 0.5
    return right.token_by_token(model, tokenizer, text, keep_ratio=ratio, prune_after=prune_after)


# What is said


def nan_left_out(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """NaN is left out of the mean."""
    ids = tokens(tokenizer, text)
    nll = cross_entropy(decoded(model, ids, keep_ratio, prune_after), ids[0, 1:], reduction="none")
    return float(nll.nanmean().exp())


def zero_for_nothing(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """A text without a scored token has an NLL of 0."""
    ids = tokens(tokenizer, text)
    if ids.shape[1] < 2:
        return 1.0
    return math.exp(float(cross_entropy(decoded(model, ids, keep_ratio, prune_after), ids[0, 1:])))


def unchanged(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> dict[str, Any]:
    """A verdict, also where nothing met an eviction."""
    base = right.token_by_token(model, tokenizer, text, keep_ratio=1, prune_after=prune_after)
    ppl = right.token_by_token(model, tokenizer, text, keep_ratio=keep_ratio, prune_after=prune_after)
    return {"ppl": ppl, "change": ppl / base - 1, "verdict": "unchanged" if ppl < 1.01 * base else "worse"}


@torch.no_grad()
def own_text(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """The model is scored on the text that it writes."""
    ids = tokens(tokenizer, text)
    with KnormPress(keep_ratio, prune_after=prune_after)(model):
        cache, output, total = None, model(ids[:, :16], use_cache=True), 0.0
        for _ in range(ids.shape[1] - 16):
            best = output.logits[:, -1].argmax(dim=-1, keepdim=True)
            total += float(cross_entropy(output.logits[:, -1].float(), best[0]))
            cache = output[cache_argument(model)]
            output = model(best, **{cache_argument(model): cache}, use_cache=True)
    return math.exp(total / (ids.shape[1] - 16))


def no_difference(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> dict[str, Any]:
    """A claim that both arms agree, also where nothing met an eviction."""
    base = right.token_by_token(model, tokenizer, text, keep_ratio=1, prune_after=prune_after)
    ppl = right.token_by_token(model, tokenizer, text, keep_ratio=keep_ratio, prune_after=prune_after)
    return {"ppl": ppl, "unchanged": abs(ppl - base) < 1e-6}


def softmax_twice(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """Probabilities are given to a loss that takes logits."""
    ids = tokens(tokenizer, text)
    return math.exp(float(cross_entropy(decoded(model, ids, keep_ratio, prune_after).softmax(-1), ids[0, 1:])))


def first_layer_only(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """The first layer is compressed, the others are not."""
    ids = tokens(tokenizer, text)
    return math.exp(float(cross_entropy(decoded(model, ids, keep_ratio, prune_after, (1,)), ids[0, 1:])))


def nominal(
    model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int, skip_layers: tuple[int, ...]
) -> dict[str, float]:
    """The share that is kept is the ratio that was asked for."""
    ids = tokens(tokenizer, text)
    logits = decoded(model, ids, keep_ratio, prune_after, skip_layers)
    return {"ppl": math.exp(float(cross_entropy(logits, ids[0, 1:]))), "kept": keep_ratio}


def held_share(
    model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int, skip_layers: tuple[int, ...]
) -> dict[str, float]:
    """The share that all layers hold."""
    ids = tokens(tokenizer, text)
    cache, nll = new_cache(), []
    for t in range(ids.shape[1] - 1):
        nll.append(cross_entropy(step(model, ids[:, t : t + 1], cache, t)[0, -1:].float(), ids[0, t + 1 : t + 2]))
        evict(cache, keep_ratio, prune_after, skip_layers, t + 1)
    held = [layer.keys.shape[2] for layer in cache.layers]
    return {"ppl": math.exp(float(torch.stack(nll).mean())), "kept": sum(held) / len(held) / ids.shape[1]}


def skip_forgotten(
    model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int, skip_layers: tuple[int, ...]
) -> float:
    """Skipped layers are evicted from, too."""
    return right.token_by_token(model, tokenizer, text, keep_ratio=keep_ratio, prune_after=prune_after)


def own_choice(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> float:
    """The model is scored on its own choice."""
    ids = tokens(tokenizer, text)
    logits = decoded(model, ids, keep_ratio, prune_after)
    return math.exp(float(cross_entropy(logits, logits.argmax(dim=-1))))


def accuracy_of_what_was_fed(
    model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int
) -> dict[str, float]:
    """Predictions are compared with the tokens that were fed."""
    ids = tokens(tokenizer, text)
    best = decoded(model, ids, keep_ratio, prune_after).argmax(dim=-1)
    return {"accuracy": float((best == ids[0, :-1]).double().mean())}


def uncompressed_choice(
    model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int
) -> dict[str, float]:
    """Perplexity is that of the compressed cache, accuracy that of a plain pass."""
    ids = tokens(tokenizer, text)
    nll = cross_entropy(decoded(model, ids, keep_ratio, prune_after), ids[0, 1:])
    with torch.no_grad():
        best = model(ids).logits[0, :-1].argmax(dim=-1)
    return {"ppl": math.exp(float(nll)), "accuracy": float((best == ids[0, 1:]).double().mean())}


def continuation_in_one_pass(
    model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int
) -> dict[str, float]:
    """Prompt and continuation are one pass under a press, as a harness that knows no cache feeds them."""
    ids = tokens(tokenizer, text)
    with torch.no_grad(), KnormPress(keep_ratio, prune_after=prune_after)(model):
        scores = log_softmax(model(ids).logits[:, 23:-1].float(), dim=-1)
    return {"nll": -float(scores.gather(2, ids[:, 24:, None]).sum())}


def first_of_continuation_lost(
    model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int
) -> dict[str, float]:
    """The prompt's last logits are dropped, and with them the continuation's first token."""
    ids = tokens(tokenizer, text)
    cache = new_cache()
    step(model, ids[:, :24], cache, 0)
    evict(cache, keep_ratio, prune_after, (), 24)
    scores = log_softmax(step(model, ids[:, 24:], cache, 24)[:, :-1].float(), dim=-1)
    return {"nll": -float(scores.gather(2, ids[:, 25:, None]).sum())}


def chunks_lose_order(model: Any, tokenizer: Any, text: str, *, chunk: int = 8) -> float:
    """Each chunk is scored without what came before it."""
    ids = tokens(tokenizer, text)
    total, count = 0.0, 0
    for begin in range(0, ids.shape[1], chunk):
        piece = ids[:, begin : begin + chunk]
        if piece.shape[1] > 1:
            with torch.no_grad():
                logits = model(piece, **{cache_argument(model): new_cache()}).logits
            total += float(cross_entropy(logits[0, :-1].float(), piece[0, 1:], reduction="sum"))
            count += piece.shape[1] - 1
    return math.exp(total / count)


def any_chunk(model: Any, tokenizer: Any, text: str, *, chunk: int = 8) -> float:
    """Chunks that share a cache."""
    ids = tokens(tokenizer, text)
    if ids.shape[1] < 2:
        raise ValueError(f"a text needs at least two tokens, got {ids.shape[1]}")
    cache = new_cache()
    pieces = [step(model, ids[:, start : start + chunk], cache, start) for start in range(0, ids.shape[1], chunk)]
    return math.exp(float(cross_entropy(torch.cat(pieces, dim=1)[0, :-1].float(), ids[0, 1:])))


REPORTS = "the reports that this project starts from"
PLAIN = {"keep_ratio": None, "prune_after": None}
ROWS = {"text": "list", **PLAIN}
ROWS_RIGHT = Evaluator.of("rows", rows_right, ROWS)
FROM_16 = Evaluator.of("attached", right.attached, {"compressor": "argument", "prompt": 16})
HELD_SHARE = Evaluator.of("held-share", held_share)
ANY_CHUNK = Evaluator.of("any-chunk", any_chunk, {**PLAIN, "same_for": {"chunk": (48, 8, 5)}})


def mutant(
    name: str,
    function: Callable[..., Any],
    seen_in: str,
    law: Law,
    says: str,
    twin: Evaluator = right.TOKEN_BY_TOKEN,
    **declares: Any,
) -> Mutant:
    """A mutant that is described by its function."""
    what = (function.__doc__ or "").strip().splitlines()[0].rstrip(".")
    evaluator = Evaluator.of(name, function, declares)
    return Mutant(f"evaluator-{name}", what, seen_in, evaluator, law, twin, says=(re.escape(says),))


EVALUATORS: list[Mutant] = [
    mutant("one-forward", one_forward_under_a_press, REPORTS, laws.test_evictions_reach_the_scored_tokens,
           "is that of the uncompressed cache: 1 pass of 48 tokens"),
    mutant("no-cache", no_cache, REPORTS, laws.test_evictions_reach_the_scored_tokens, "is that of the uncompressed"),
    mutant("never-installed", never_installed, "KVCache-Factory 485af3c", laws.test_evictions_reach_the_scored_tokens,
           "the compressor was never installed"),
    mutant("threshold", threshold_never_exceeded, REPORTS, laws.test_evictions_reach_the_scored_tokens,
           "the shorter text never exceeded it"),
    mutant("short-chunks", short_chunks, "plausible", laws.test_evictions_reach_the_scored_tokens,
           "no cache was fed more than"),
    mutant("strided-press", strided_under_a_press, "plausible", laws.test_evictions_reach_the_scored_tokens,
           "is that of the uncompressed cache", window=32, stride=16),
    mutant("own-pass", scored_by_its_own_pass, REPORTS, laws.test_evictions_reach_the_scored_tokens,
           "entries were evicted after the last query"),
    mutant("own-choice", own_choice, "plausible", laws.test_a_chain_is_scored_exactly_at_every_ratio,
           "for a Markov chain"),
    mutant("reads-padding", mask_forgotten, "KIVI issue 18", laws.test_a_query_reads_its_own_text_only,
           "reads padding", ROWS_RIGHT, **ROWS),
    mutant("held-positions", positions_from_held, REPORTS, laws.test_queries_have_the_positions_of_the_tokens_seen,
           "counted in entries held"),
    mutant("no-shift", no_shift, REPORTS, laws.test_with_evictions_the_figure_is_that_of_the_entries_held, "no shift"),
    mutant("shifted-twice", shifted_twice, "plausible", laws.test_without_evictions_the_figure_is_exact,
           "double shift"),
    mutant("prompt-scored", prompt_scored, "plausible", laws.test_without_evictions_the_figure_is_exact,
           "with the prompt scored as well", FROM_16, prompt=16),
    mutant("prompt-forgotten", prompt_forgotten, "plausible", laws.test_without_evictions_the_figure_is_exact,
           "without the prompt in its context", FROM_16, prompt=16),
    mutant("seam", seam_lost, "plausible", laws.test_without_evictions_the_figure_is_exact, "lost at each seam",
           right.IN_CHUNKS),
    mutant("affected-only", affected_only, "plausible", laws.test_the_number_of_scored_tokens_is_reported_exactly,
           "keep_ratio 0.5: reported tokens", right.IN_CHUNKS),
    mutant("affected-ppl", affected_only, "plausible",
           laws.test_with_evictions_the_figure_is_that_of_the_entries_held, "of the affected tokens only"),
    mutant("fed-differently", arms_fed_differently, "plausible", laws.test_both_arms_are_fed_alike,
           "keep_ratio 1 was fed in 1 passes"),
    mutant("truncated", truncated, "plausible", laws.test_without_evictions_the_figure_is_exact,
           "of the first 32 tokens of the text only divided by the number of all tokens"),
    mutant("columns-counted", count_of_columns, "plausible",
           laws.test_the_number_of_scored_tokens_is_reported_exactly, "the first of each text included",
           right.IN_CHUNKS),
    mutant("mean-of-chunks", mean_of_chunks, "l2compress; transformers PR 34387",
           laws.test_without_evictions_the_figure_is_exact, "mean of the perplexities of 6 passes", right.IN_CHUNKS),
    mutant("threshold-scored", from_the_threshold_on, "plausible",
           laws.test_with_evictions_the_figure_is_that_of_the_entries_held, "without the first 8 scored tokens"),
    mutant("mean-of-pieces", mean_of_pieces, "l2compress", laws.test_without_evictions_the_figure_is_exact,
           "mean of the perplexities of 5 pieces of 10 tokens"),
    mutant("base-2", base_2, "plausible", laws.test_without_evictions_the_figure_is_exact, "2 to the power"),
    mutant("bits", bits_as_nats, "plausible", laws.test_without_evictions_the_figure_is_exact, "in bits",
           right.IN_CHUNKS),
    mutant("mean-of-exponentials", mean_of_exponentials, "plausible",
           laws.test_without_evictions_the_figure_is_exact, "inverse probabilities"),
    mutant("windows-alike", windows_alike, "transformers PR 34387", laws.test_without_evictions_the_figure_is_exact,
           "mean of the means of 2 windows", right.STRIDED, window=32, stride=16, **PLAIN),
    mutant("disjoint", disjoint_windows, "plausible", laws.test_without_evictions_the_figure_is_exact,
           "pieces that do not see each other", right.STRIDED, **PLAIN),
    mutant("padding-scored", padding_scored, "KIVI issue 18", laws.test_without_evictions_the_figure_is_exact,
           "with the padding scored", ROWS_RIGHT, **ROWS),
    mutant("one-too-many", one_too_many, "plausible", laws.test_without_evictions_the_figure_is_exact,
           "one token too many for each short text", ROWS_RIGHT, **ROWS),
    mutant("mean-of-rows", mean_of_rows, "l2compress", laws.test_without_evictions_the_figure_is_exact,
           "mean of the perplexities of 3 texts", ROWS_RIGHT, **ROWS),
    mutant("mask-forgotten", mask_forgotten, "KIVI issue 18", laws.test_without_evictions_the_figure_is_exact,
           "no attention mask was given", ROWS_RIGHT, **ROWS),
    mutant("columns-divide", columns_in_the_divisor, "plausible", laws.test_without_evictions_the_figure_is_exact,
           "all columns but the first, padding included", ROWS_RIGHT, **ROWS),
    mutant("press-stays", press_that_stays, "kvpress PR 244", laws.test_a_figure_does_not_depend_on_what_ran_before,
           "keep_ratio 1 after 0.5"),
    mutant("cache-stays", cache_that_stays, "plausible", laws.test_a_figure_does_not_depend_on_what_ran_before,
           "the cache of an earlier call"),
    mutant("result-reused", result_reused, "plausible", laws.test_every_configuration_is_measured_anew,
           "without any pass"),
    mutant("threshold-reused", result_reused_by_ratio, "plausible", laws.test_every_configuration_is_measured_anew,
           "prune_after 16, 48 tokens without any pass"),
    mutant("ratio-inverted", ratio_inverted, "plausible", laws.test_a_smaller_ratio_leaves_fewer_entries,
           "taken for the one that is kept"),
    mutant("ratio-ignored", ratio_ignored, "plausible", laws.test_every_configuration_is_measured_anew,
           "the ratio does not reach the compressor"),
    mutant("nan-left-out", nan_left_out, "plausible", laws.test_what_is_not_a_number_is_never_averaged_away,
           "NaN was left out"),
    mutant("zero-for-nothing", zero_for_nothing, REPORTS, laws.test_there_is_no_figure_without_a_scored_token,
           "of which no token is scored"),
    mutant("unchanged", unchanged, f"cold-compress issue 39; {REPORTS}",
           laws.test_an_unaffected_run_is_not_called_unchanged, "vacuous, not unchanged", right.CANDID),
    mutant("own-text", own_text, "plausible", laws.test_without_evictions_the_figure_is_exact,
           "such as those that the model wrote", FROM_16, prompt=16),
    mutant("no-difference", no_difference, "plausible", laws.test_an_unaffected_run_is_not_called_unchanged,
           "'unchanged': True", right.CANDID),
    mutant("softmax-twice", softmax_twice, "plausible", laws.test_without_evictions_the_figure_is_exact,
           "the softmax is taken twice"),
    mutant("first-layer", first_layer_only, "plausible", laws.test_evictions_reach_the_scored_tokens,
           "the last layer evicted nothing"),
    mutant("nominal", nominal, "kvpress issue 146", laws.test_the_kept_share_is_what_all_layers_hold,
           "the nominal keep_ratio", HELD_SHARE),
    mutant("skip-forgotten", skip_forgotten, "plausible", laws.test_skipped_layers_keep_everything,
           "only layer 1 of the audit's model"),
    mutant("accuracy-fed", accuracy_of_what_was_fed, "plausible", laws.test_accuracy_is_exact, "with no shift",
           right.GREEDY),
    mutant("accuracy-plain", uncompressed_choice, "plausible", laws.test_accuracy_is_exact,
           "the accuracy of the uncompressed cache", right.GREEDY),
    mutant("continuation-pass", continuation_in_one_pass, "lm-evaluation-harness issue 3298",
           laws.test_evictions_reach_the_scored_tokens, "is that of the uncompressed cache", right.CONTINUATION,
           prompt=24, nll="sum"),
    mutant("continuation-first", first_of_continuation_lost, "plausible",
           laws.test_with_evictions_the_figure_is_that_of_the_entries_held,
           "without the first scored token", right.CONTINUATION, prompt=24, nll="sum"),
    mutant("chunks-alone", chunks_lose_order, "plausible", laws.test_how_a_text_is_cut_does_not_matter,
           "pieces that do not see each other", ANY_CHUNK, same_for={"chunk": (48, 8, 5)}, **PLAIN),
]  # fmt: skip
