"""Generation with a press attached: prefill, decode, sample."""

import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from numbers import Real
from typing import Any
from weakref import WeakKeyDictionary

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

from pressgauge.arguments import check_context, check_ids, check_model, check_tensor, described
from pressgauge.cache import PressedCache, by_cache, unattached
from pressgauge.models import interface
from pressgauge.models.padding import computes_behind_padding, counts_padding, has_recurrent_layers
from pressgauge.presses.base import Press, check_press
from pressgauge.proof import vacuity_reported
from pressgauge.rules import whole_number, whole_numbers


@dataclass(frozen=True)
class Generation:
    """Result of ``generate``.

    Attributes:
        tokens: ``[B, T + new]`` int64: the input and the generated tokens, right-padded after the end of sequence.
        new_tokens: number of generated columns.
        generated: number of generated tokens over all rows, without padding after the end of sequence.
        cache: the cache, to continue with in a next turn.
        ttft: time to first token, in seconds from the start of prefill.
        tpot: mean time per later token, in seconds; None if there was none.
    """

    tokens: Tensor
    new_tokens: int
    generated: int
    cache: DynamicCache
    ttft: float
    tpot: float | None

    @property
    def tokens_per_second(self) -> float:
        """Throughput: generated tokens of all rows per second of the whole run."""
        seconds = self.ttft + (self.tpot or 0.0) * (self.new_tokens - 1)
        return self.generated / seconds


@contextmanager
def attached(press: Press | None, model: PreTrainedModel) -> Iterator[None]:
    """``press(model)`` for a result that says what was evicted; nothing without a press, or with a plain cache."""
    with vacuity_reported(), nullcontext() if press is None or by_cache(press, model.config) else press(model):
        yield


def new_cache(press: Press | None, model: PreTrainedModel, prompt_length: int) -> DynamicCache:
    """An empty cache for a run that is attached if it can be; a plain ``DynamicCache`` without a press."""
    if press is None:
        return DynamicCache(config=model.config)
    if by_cache(press, model.config):
        return unattached(None, press, model.config, prompt_length)
    return PressedCache(press, model.config, prompt_length=prompt_length)


def checked_mask(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Validated attention mask of a batch, all ones by default: ``[B, T]``.

    Raises:
        TypeError: if ``attention_mask`` is not a tensor.
        ValueError: if its shape is not that of ``input_ids``, or padding is not on the left.
    """
    if attention_mask is None:
        return torch.ones_like(input_ids)
    check_tensor("attention_mask", attention_mask, str(list(input_ids.shape)))
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must be {list(input_ids.shape)} like input_ids, got {list(attention_mask.shape)}"
        )
    mask = (attention_mask != 0).long()
    wrong = (mask.diff(dim=1) < 0).any(dim=1).tolist()
    if any(wrong):
        raise ValueError(f"row {wrong.index(True)} has padding between or after its tokens: pad on the left")
    return mask


def refuse_padding(model: PreTrainedModel, mask: Tensor, prompt: int, press: Press | None = None) -> None:
    """Raise ``ValueError`` if a model would decode padded rows unlike each row alone.

    The mask is ``[B, T]``, 0 at padding, and the first ``prompt`` columns are one pass.
    """
    padding = int((mask == 0).sum(dim=1).max())
    if not padding:
        return
    name = type(model).__name__
    unseen = "works with a press by a plain cache only, which never sees the attention mask"
    if why := unseen if by_cache(press, model.config) else counts_padding(model):
        raise ValueError(
            f"{name} {why}, so padded rows cannot be decoded as they are alone: feed rows of equal length, or one at a "
            "time"
        )
    if not computes_behind_padding(model):
        raise ValueError(f"{name} in float64 computes NaN behind padding, by its eager attention: use float32")
    if has_recurrent_layers(model.config) and (prompt == 1 or padding > prompt):
        raise ValueError(
            f"{name} has recurrent layers, which treat padding fed singly as text; a row has {padding} "
            f"columns of padding and the prompt {prompt}: use a longer prompt, or feed rows of equal length"
        )


def prove(model: PreTrainedModel, cache: DynamicCache, seen: int) -> None:
    """Raise ``ValueError`` unless a model has fed ``seen`` tokens to the cache it was passed."""
    found = interface.tokens_seen(cache)
    if found not in (None, seen):
        raise ValueError(
            f"{type(model).__name__} ({interface.VERSION}) was fed {seen} tokens, and the cache that it was given has "
            f"seen {found}: it keeps no such cache, so measure it by method='plain'"
        )


_FED: WeakKeyDictionary[DynamicCache, tuple[Tensor, weakref.ref[Tensor]]] = WeakKeyDictionary()
"""Per transformers cache, tokens ``[B, T]`` fed by ``generate``, and its first tensor then."""


def _first_stored(cache: DynamicCache) -> Tensor | None:
    layers: list[Any] = cache.layers
    stored = (value for layer in layers for value in vars(layer).values() if isinstance(value, Tensor))
    return next(stored, None)


def _note_fed(cache: DynamicCache, tokens: Tensor) -> None:
    """Record the tokens ``[B, T]`` that a cache has seen."""
    if isinstance(cache, PressedCache):
        cache.fed = tokens
    elif (stored := _first_stored(cache)) is not None:
        _FED[cache] = tokens, weakref.ref(stored)


def _fed(cache: DynamicCache) -> Tensor | None:
    """Tokens that a cache has seen first: ``[B, T]``, or None if unknown."""
    # Unknown if `generate` did not feed them, or if a transformers cache has changed since other than by a crop.
    if isinstance(cache, PressedCache):
        return cache.fed
    tokens, then = _FED.get(cache, (None, lambda: None))
    now, before = _first_stored(cache), then()
    # Feeding or reordering a cache replaces its tensors; cropping takes views of them.
    return tokens if before is not None and now is not None and (before is now or before is now._base) else None


def _check_fed(cache: DynamicCache, input_ids: Tensor, mask: Tensor) -> None:
    """Raise ``ValueError`` if a cache is known to have seen other tokens than ``input_ids``."""
    fed = _fed(cache)
    if fed is None:
        return
    fed = fed[:, : cache.get_seq_length()].to(input_ids.device)
    if len(fed) != len(input_ids):
        raise ValueError(f"the cache has seen {len(fed)} rows and input_ids has {len(input_ids)}: pass the same rows")
    columns = fed.shape[1]
    differ = ((input_ids[:, :columns] != fed) & mask[:, :columns].bool()).nonzero().tolist()
    if differ:
        row, column = differ[0]
        raise ValueError(
            f"the cache has seen other tokens than input_ids begins with: in row {row}, token {column} was "
            f"{int(fed[row, column])} and is {int(input_ids[row, column])}; pass the tokens of that Generation and "
            "more behind them, or no cache"
        )


def own_positions(attention_mask: Tensor) -> Tensor:
    """Positions counted in each row's own tokens, 0 at padding: ``[B, T]``."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _processors(temperature: float, top_k: int | None, top_p: float | None) -> LogitsProcessorList:
    """Logits processors of transformers, which validate their arguments."""
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

    For a further turn, pass the whole sequence so far followed by the new tokens, and the ``cache`` of the previous
    turn. Tokens that the cache has seen are not fed again. Tokens fed by the previous turn are compared with
    ``input_ids``. If the cache was fed or changed by other means, only their number is known and compared.

    Args:
        model: any causal model that uses transformers' attention interface.
        input_ids: ``[B, T]``, padded on the left.
        press: the press; None for an uncompressed cache.
        max_new_tokens: maximum number of tokens to generate, at least 1.
        attention_mask: ``[B, T]``, 0 at padding; None if nothing is padded.
        cache: cache of an earlier turn; it may have been cropped and its rows reordered.
        temperature: 0 for greedy decoding, above 0 for sampling.
        top_k, top_p: restrict sampling, as in transformers.
        seed: seed of sampling; gives the same tokens as ``model.generate`` after ``torch.manual_seed``.
        eos_token_id: token or tokens that end a row; the model's by default.
        progress: show a progress bar.

    Returns:
        Tokens, cache and times, see ``Generation``.

    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: for arguments out of range, more tokens than the model's context, a cache that has seen other
            tokens, or a model that the press does not support.
    """
    check_model(model)
    check_press(press)
    check_ids(input_ids, 1, model.config)
    max_new_tokens = whole_number("max_new_tokens", max_new_tokens, 1)
    if cache is not None and not isinstance(cache, DynamicCache):
        raise TypeError(f"cache must be a DynamicCache, got {described(cache)}: give that of a Generation, or none")
    if isinstance(temperature, bool) or not isinstance(temperature, Real):
        raise TypeError(f"temperature must be a number, 0 (greedy) or above, got {described(temperature)}")
    if temperature < 0:
        raise ValueError(f"temperature must be 0 (greedy) or above, got {temperature}")
    if not temperature and (top_k is not None or top_p is not None or seed is not None):
        raise ValueError("top_k, top_p and seed are for sampling, which needs a temperature above 0, got 0")
    rows, length = input_ids.shape
    device = input_ids.device
    processors = _processors(temperature, top_k, top_p) if temperature else None
    generator = None
    if seed is not None:
        generator = torch.Generator(device=device).manual_seed(whole_number("seed", seed, None))
    if eos_token_id is None and model.generation_config is not None:
        eos_token_id = model.generation_config.eos_token_id
    ends = [] if eos_token_id is None else [eos_token_id] if isinstance(eos_token_id, int) else eos_token_id
    ends = whole_numbers("eos_token_id", ends)
    mask = checked_mask(input_ids, attention_mask)
    tokens_at_end = int(mask.sum(dim=-1).max()) + max_new_tokens
    check_context(model.config, tokens_at_end, "input_ids and max_new_tokens")
    if cache is None:
        cache = new_cache(press, model, length)
    elif press is not None and by_cache(press, model.config):
        cache = unattached(cache, press, model.config, length)
    named = {interface.cache_argument(model): cache}
    seen = cache.get_seq_length()
    if seen >= length:
        raise ValueError(
            f"the cache has seen {seen} tokens and input_ids has {length}: pass the whole sequence so far and more"
        )
    _check_fed(cache, input_ids, mask)
    padded = not bool(mask.all())
    refuse_padding(model, mask, length, press)
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
            logits = interface.feed(model, feed, named, *given)[:, -1]
            prove(model, cache, tokens.shape[1])
            # As in transformers, logits processors and sampling use float32.
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
    _note_fed(cache, tokens[:, :-1])
    new = tokens.shape[1] - length
    tpot = (last - first) / (new - 1) if new > 1 else None
    return Generation(tokens, new, int(generated), cache, first - started, tpot)
