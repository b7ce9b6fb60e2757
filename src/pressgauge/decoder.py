"""Prefill, decode, sample: generation with a press attached."""

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pressgauge import interface
from pressgauge.cache import PressedCache
from pressgauge.press import Press


@dataclass(frozen=True)
class Generation:
    """What ``generate`` returns.

    Attributes:
        tokens: ``[B, T + new]`` int64: the input, then what was generated, padded behind a row's end of sequence.
        new_tokens: how many columns were generated.
        generated: how many tokens were generated, over rows, without the padding behind rows that ended.
        cache: the cache, which a next turn can go on with.
        ttft: seconds from the call to the first token.
        tpot: mean seconds per later token; None if there was none.
    """

    tokens: Tensor
    new_tokens: int
    generated: int
    cache: DynamicCache
    ttft: float
    tpot: float | None

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens of all rows per second of the whole run."""
        seconds = self.ttft + (self.tpot or 0.0) * (self.new_tokens - 1)
        return self.generated / seconds


def attached(press: Press | None, model: PreTrainedModel) -> AbstractContextManager[None]:
    """``press(model)``, or nothing at all without a press."""
    return nullcontext() if press is None else press(model)


def new_cache(press: Press | None, model: PreTrainedModel, prompt_length: int) -> DynamicCache:
    """An empty cache for an attached run; a plain ``DynamicCache`` without a press."""
    if press is None:
        return DynamicCache(config=model.config)
    return PressedCache(press, model.config, prompt_length=prompt_length)


def checked_mask(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The attention mask ``[B, T]`` of a batch, all ones if there is none.

    Raises:
        ValueError: if it does not fit ``input_ids``, or padding is not on the left.
    """
    if attention_mask is None:
        return torch.ones_like(input_ids)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must be {list(input_ids.shape)} like input_ids, got {list(attention_mask.shape)}"
        )
    mask = (attention_mask != 0).long()
    wrong = (mask.diff(dim=1) < 0).any(dim=1).tolist()
    if any(wrong):
        raise ValueError(f"row {wrong.index(True)} has padding between or after its tokens: pad on the left")
    return mask


def refuse_padding(model: PreTrainedModel, mask: Tensor, prompt: int) -> None:
    """Raise a ``ValueError`` if a model cannot decode rows with this padding, ``[B, T]``, of which the first ``prompt``
    columns are one pass, as it would decode each row alone."""
    padding = int((mask == 0).sum(dim=1).max())
    if not padding:
        return
    name, classes = type(model).__name__, interface.layer_classes(model.config)
    selecting = any(map(interface.selects_keys, classes))
    if selecting or not interface.takes_positions(interface.decoder_of(model)):
        why = "selects keys by their columns" if selecting else "numbers positions itself"
        raise ValueError(
            f"{name} {why} and counts padding, so padded rows cannot be decoded as they are alone: feed rows of equal "
            "length, or one at a time"
        )
    linear = not all(map(interface.caches_keys, classes))
    if linear and (prompt == 1 or padding > prompt):
        raise ValueError(
            f"{name} has layers without keys, which take padding that is fed singly for text; a row has {padding} "
            f"columns of padding and the prompt {prompt}: use a longer prompt, or feed rows of equal length"
        )


def prove(model: PreTrainedModel, cache: DynamicCache, seen: int) -> None:
    """Raise a ``ValueError`` unless a model has fed ``seen`` tokens to the cache that it was given."""
    found = interface.tokens_seen(cache)
    if found not in (None, seen):
        raise ValueError(
            f"{type(model).__name__} ({interface.VERSION}) was fed {seen} tokens, and the cache that it was given has "
            f"seen {found}: it keeps no such cache, so measure it by method='plain'"
        )


def own_positions(attention_mask: Tensor) -> Tensor:
    """``[B, T]``: positions counted in each row's own tokens, 0 at padding."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _processors(temperature: float, top_k: int | None, top_p: float | None) -> LogitsProcessorList:
    """transformers' own processors, which validate their arguments."""
    processors = LogitsProcessorList()
    if temperature != 1.0:
        processors.append(TemperatureLogitsWarper(float(temperature)))
    if top_k is not None:
        processors.append(TopKLogitsWarper(top_k))
    if top_p is not None and top_p != 1:
        processors.append(TopPLogitsWarper(top_p))
    return processors


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    press: Press | None = None,
    max_new_tokens: int = 64,
    *,
    attention_mask: Tensor | None = None,
    cache: DynamicCache | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    eos_token_id: int | Iterable[int] | None = None,
    progress: bool = False,
) -> Generation:
    """Generate from a batch of prompts with a compressed cache.

    For a further turn, pass the whole sequence so far with the new tokens behind it, and the ``cache`` of the turn
    before: what the cache has seen is not fed again.

    Args:
        model: any causal model that goes through transformers' attention interface.
        input_ids: ``[B, T]``, padded on the left.
        press: the press; None for an uncompressed cache.
        max_new_tokens: how many tokens to generate at most, at least 1.
        attention_mask: ``[B, T]``, 0 at padding; none means that nothing is padded.
        cache: the cache of an earlier turn.
        temperature: 0 for greedy decoding, above 0 for sampling.
        top_k, top_p: restrict sampling, as transformers does.
        seed: of the sampling; the same seed gives the same tokens as ``model.generate`` after ``torch.manual_seed``.
        eos_token_id: the token or tokens that end a row; by default the model's.
        progress: show a progress bar.

    Raises:
        ValueError: for arguments out of range, and whatever the press cannot do right by the model.
    """
    if input_ids.dim() != 2 or not input_ids.numel():
        raise ValueError(f"input_ids must be [batch, tokens] with at least one of each, got {list(input_ids.shape)}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if temperature < 0:
        raise ValueError(f"temperature must be 0 (greedy) or above, got {temperature}")
    if not temperature and (top_k is not None or top_p is not None or seed is not None):
        raise ValueError("top_k, top_p and seed are for sampling, which needs a temperature above 0, got 0")
    rows, length = input_ids.shape
    device = input_ids.device
    processors = _processors(temperature, top_k, top_p) if temperature else None
    generator = None
    if seed is not None:
        generator = torch.Generator(device=device).manual_seed(seed)
    if eos_token_id is None and model.generation_config is not None:
        eos_token_id = model.generation_config.eos_token_id
    ends = [] if eos_token_id is None else [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
    if cache is None:
        cache = new_cache(press, model, length)
    seen = cache.get_seq_length()
    if seen >= length:
        raise ValueError(
            f"the cache has seen {seen} tokens and input_ids has {length}: pass the whole sequence so far and more"
        )
    mask = checked_mask(input_ids, attention_mask)
    padded = not bool(mask.all())
    refuse_padding(model, mask, length)
    stop = torch.tensor(ends, device=device, dtype=input_ids.dtype)
    padding_id = model.generation_config.pad_token_id if model.generation_config is not None else None
    fill = padding_id if padding_id is not None else ends[0] if ends else 0
    done = torch.zeros(rows, dtype=torch.bool, device=device)
    generated = torch.zeros((), dtype=torch.long, device=device)
    tokens: Any = input_ids  # transformers asks its processors for the old tensor types
    feed = input_ids[:, seen:]

    _synchronise(device)
    started = first = last = time.perf_counter()
    with attached(press, model):
        for step in track(range(max_new_tokens), description="generating", disable=not progress, transient=True):
            given = (mask, own_positions(mask)[:, -feed.shape[1] :]) if padded else ()
            logits = interface.feed(model, feed, cache, *given)[:, -1]
            prove(model, cache, tokens.shape[1])
            # As transformers does: sampling and its processors work on float32.
            logits = logits.to(torch.float32, copy=True)
            if processors is None:
                chosen = logits.argmax(dim=-1)
            else:
                probabilities = processors(tokens, logits).softmax(dim=-1)
                chosen = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
            feed = torch.where(done, fill, chosen)[:, None]
            generated += (~done).sum()
            tokens = torch.cat([tokens, feed], dim=1)
            mask = torch.cat([mask, mask.new_ones(rows, 1)], dim=1)
            if ends:
                done = done | torch.isin(feed[:, 0], stop)
            _synchronise(device)
            last = time.perf_counter()
            if step == 0:
                first = last
            if ends and bool(done.all()):
                break
    new = tokens.shape[1] - length
    tpot = (last - first) / (new - 1) if new > 1 else None
    return Generation(tokens, new, int(generated), cache, first - started, tpot)
