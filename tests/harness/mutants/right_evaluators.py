"""Right evaluators in the styles in which people write them: none of them breaks a law for evaluators."""

import copy
import math
from typing import Any

import torch
from torch.nn.functional import cross_entropy, log_softmax
from transformers import DynamicCache

from pressgauge import cache_argument
from pressgauge.measuring.evaluators import Evaluator


def new_cache() -> Any:
    """An empty cache."""
    return DynamicCache()


def evict(cache: Any, keep_ratio: float, prune_after: int, skip_layers: tuple[int, ...] = (), seen: int = 0) -> None:
    """Keep the keys of lowest norm: ``keep_ratio`` of the tokens seen, in each layer that exceeds ``prune_after``."""
    for index, layer in enumerate(cache.layers):
        held = layer.keys.shape[2]
        if index in skip_layers or held <= prune_after or keep_ratio == 1:
            continue
        left = min(held, max(prune_after, math.ceil(keep_ratio * seen)))
        best = (-layer.keys.norm(dim=-1)).topk(left, dim=-1).indices.sort(dim=-1).values[..., None]
        layer.keys = layer.keys.gather(2, best.expand(-1, -1, -1, layer.keys.shape[3]))
        layer.values = layer.values.gather(2, best.expand(-1, -1, -1, layer.values.shape[3]))


def step(model: Any, ids: Any, cache: Any, start: int) -> Any:
    """Logits of a pass at the positions of the tokens seen."""
    positions = torch.arange(start, start + ids.shape[1])[None]
    with torch.no_grad():
        return model(ids, **{cache_argument(model): cache}, position_ids=positions, use_cache=True).logits


def strided(model: Any, tokenizer: Any, text: str, *, window: int = 32, stride: int = 16) -> float:
    """Perplexity in overlapping windows, each token scored once, as Hugging Face's guide has it."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    total, count, end_before = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + window, ids.shape[1])
        target = ids[:, begin:end].clone()
        target[:, : -(end - end_before)] = -100
        with torch.no_grad():
            loss = model(ids[:, begin:end], labels=target).loss
        scored = int((target[:, 1:] != -100).sum())
        total, count, end_before = total + float(loss) * scored, count + scored, end
        if end == ids.shape[1]:
            break
    return math.exp(total / count)


def token_by_token(
    model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int, skip_layers: tuple[int, ...] = ()
) -> float:
    """Every token is a pass of its own, and eviction follows it."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    cache, nll = new_cache(), []
    for t in range(ids.shape[1] - 1):
        logits = step(model, ids[:, t : t + 1], cache, t)
        nll.append(cross_entropy(logits[:, -1].float(), ids[:, t + 1]))
        evict(cache, keep_ratio, prune_after, skip_layers, t + 1)
    return float(torch.stack(nll).mean().exp())


def in_chunks(
    model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int, chunk: int = 8
) -> dict[str, Any]:
    """Chunks go through the cache one after the other; the last logits of a chunk score the first of the next."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    cache, logits = new_cache(), []
    for start in range(0, ids.shape[1], chunk):
        logits.append(step(model, ids[:, start : start + chunk], cache, start))
        evict(cache, keep_ratio, prune_after, (), min(start + chunk, ids.shape[1]))
    scores = torch.cat(logits, dim=1)[0, :-1].float()
    nll = cross_entropy(scores, ids[0, 1:], reduction="sum")
    count = ids.shape[1] - 1
    hits = int((scores.argmax(dim=-1) == ids[0, 1:]).sum())
    held = [layer.keys.shape[2] for layer in cache.layers]
    return {
        "ppl": math.exp(float(nll) / count),
        "nll": float(nll) / count,
        "accuracy": hits / count,
        "tokens": count,
        "kept": sum(held) / len(held) / ids.shape[1],
    }


def continuation(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> dict[str, float]:
    """Log-likelihood of a continuation after a compressed prompt: two passes."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    prompt, rest = ids[:, :24], ids[:, 24:]
    cache = new_cache()
    first = step(model, prompt, cache, 0)[:, -1:]
    evict(cache, keep_ratio, prune_after, (), 24)
    later = step(model, rest, cache, 24)[:, :-1]
    scores = log_softmax(torch.cat([first, later], dim=1).float(), dim=-1)
    loglikelihood = scores.gather(2, rest[..., None]).sum()
    return {"nll": -float(loglikelihood), "tokens": rest.shape[1]}


def greedy_accuracy(
    model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int, skip_layers: tuple[int, ...] = ()
) -> dict[str, float]:
    """Share of tokens that greedy decoding would have written, the text being given."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    cache, hits = new_cache(), 0
    for t in range(ids.shape[1] - 1):
        logits = step(model, ids[:, t : t + 1], cache, t)
        hits += int(logits[0, -1].argmax() == ids[0, t + 1])
        evict(cache, keep_ratio, prune_after, skip_layers, t + 1)
    return {"accuracy": hits / (ids.shape[1] - 1)}


def attached(model: Any, tokenizer: Any, text: str, *, compressor: Any) -> dict[str, Any]:
    """A press is handed in and attached: the prompt is one pass, then tokens follow one by one."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    name = cache_argument(model)
    total, cache = 0.0, None
    with torch.no_grad(), compressor(model):
        output = model(ids[:, :16], use_cache=True)
        for t in range(16, ids.shape[1]):
            total += float(cross_entropy(output.logits[:, -1].float(), ids[:, t]))
            cache = output[name]
            output = model(ids[:, t : t + 1], **{name: cache}, use_cache=True)
    return {"ppl": math.exp(total / (ids.shape[1] - 16)), "tokens": ids.shape[1] - 16}


def with_cache(model: Any, tokenizer: Any, ids: Any, *, compressor: Any) -> dict[str, Any]:
    """A press is handed in and makes the cache; texts begin with their beginning-of-text token."""
    cache, bits = compressor.cache(model.config, unpadded=True), 0.0
    for t in range(ids.shape[1] - 1):
        logits = step(model, ids[:, t : t + 1], cache, t)
        bits -= float(log_softmax(logits[0, -1].double(), dim=-1)[ids[0, t + 1]]) / math.log(2)
    return {"nll": bits, "tokens": ids.shape[1] - 1}


def per_byte(
    model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int, skip_layers: tuple[int, ...] = ()
) -> float:
    """Perplexity per byte of the text."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    cache, total = new_cache(), 0.0
    if ids.shape[1] < 2:
        raise ValueError(f"a text needs at least two tokens, got {ids.shape[1]}")
    for t in range(ids.shape[1] - 1):
        logits = step(model, ids[:, t : t + 1], cache, t)
        total += float(cross_entropy(logits[:, -1].float(), ids[:, t + 1]))
        evict(cache, keep_ratio, prune_after, skip_layers, t + 1)
    return math.exp(total / len(text.encode()))


def batched(
    model: Any, tokenizer: Any, texts: list[str], *, keep_ratio: float, prune_after: int, batch_size: int = 2
) -> dict[str, Any]:
    """Left-padded batches; of each row the newest entries are kept, as a window."""
    total, count = 0.0, 0
    for begin in range(0, len(texts), batch_size):
        batch = tokenizer(texts[begin : begin + batch_size], padding=True, return_tensors="pt")
        ids, mask = batch.input_ids, batch.attention_mask
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = new_cache()
        for t in range(ids.shape[1] - 1):
            held = cache.layers[0].keys.shape[2] if cache.layers else 0
            with torch.no_grad():
                logits = model(
                    ids[:, t : t + 1],
                    attention_mask=mask[:, t - held : t + 1],
                    position_ids=positions[:, t : t + 1],
                    **{cache_argument(model): cache},
                ).logits
            nll = cross_entropy(logits[:, -1].float(), ids[:, t + 1], reduction="none")
            scored = mask[:, t] * mask[:, t + 1]
            total, count = total + float(torch.where(scored.bool(), nll, 0.0).sum()), count + int(scored.sum())
            if keep_ratio < 1:
                for layer in cache.layers:
                    left = max(prune_after, round(32 * keep_ratio))
                    layer.keys, layer.values = layer.keys[:, :, -left:], layer.values[:, :, -left:]
    return {"ppl": math.exp(total / count), "tokens": count}


def candid(
    model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int, skip_layers: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Both arms in one call, fed alike, with the number of affected tokens and the change."""
    ids = tokenizer(text, return_tensors="pt").input_ids

    def arm(ratio: float) -> tuple[float, int]:
        cache, total, affected = new_cache(), 0.0, 0
        for t in range(ids.shape[1] - 1):
            logits = step(model, ids[:, t : t + 1], cache, t)
            affected += cache.layers[1].keys.shape[2] <= t
            total += float(cross_entropy(logits[:, -1].float(), ids[:, t + 1]))
            evict(cache, ratio, prune_after, skip_layers, t + 1)
        return math.exp(total / (ids.shape[1] - 1)), affected

    base, _ = arm(1)
    ppl, affected = arm(keep_ratio)
    change = ppl / base - 1 if affected or keep_ratio == 1 else None
    return {"ppl": ppl, "affected_tokens": affected, "change": change, "vacuous": keep_ratio < 1 and not affected}


def branching(model: Any, tokenizer: Any, text: str, *, keep_ratio: float, prune_after: int) -> dict[str, float]:
    """The prompt's cache is compressed once, and copied for each continuation that is scored."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    cache = new_cache()
    first = step(model, ids[:, :32], cache, 0)[:, -1:]
    evict(cache, keep_ratio, prune_after, (), 32)
    own = copy.deepcopy(cache)
    later = step(model, ids[:, 32:], own, 32)[:, :-1]
    scores = log_softmax(torch.cat([first, later], dim=1).float(), dim=-1)
    return {"nll": -float(scores.gather(2, ids[:, 32:, None]).mean())}


_NO_OPTIONS = {"keep_ratio": None, "prune_after": None}
STRIDED = Evaluator.of("strided", strided, {"window": 32, "stride": 16, **_NO_OPTIONS})
TOKEN_BY_TOKEN = Evaluator.of("token-by-token", token_by_token)
IN_CHUNKS = Evaluator.of("in-chunks", in_chunks)
CONTINUATION = Evaluator.of("continuation", continuation, {"prompt": 24, "nll": "sum"})
GREEDY = Evaluator.of("greedy-accuracy", greedy_accuracy)
ATTACHED = Evaluator.of("attached", attached, {"compressor": "argument", "prompt": 16})
WITH_CACHE = Evaluator.of(
    "with-cache",
    with_cache,
    {"compressor": "argument", "text": "ids", "bos": True, "nll": "sum", "logarithm": "2"},
)
PER_BYTE = Evaluator.of("per-byte", per_byte, {"unit": "byte"})
BATCHED = Evaluator.of("batched", batched, {"text": "list", "same_for": {"batch_size": (1, 2, 3)}})
CANDID = Evaluator.of("candid", candid)
BRANCHING = Evaluator.of("branching", branching, {"prompt": 32})
RIGHT_EVALUATORS = [
    STRIDED,
    TOKEN_BY_TOKEN,
    IN_CHUNKS,
    CONTINUATION,
    GREEDY,
    ATTACHED,
    WITH_CACHE,
    PER_BYTE,
    BATCHED,
    CANDID,
    BRANCHING,
]
