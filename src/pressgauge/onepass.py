"""One forward pass over a text that attends as decoding with a compressed cache does.

Under teacher forcing, what a layer evicts depends on the keys and queries of that layer alone, and a plain forward pass
has those of all tokens at once. So each layer replays its evictions, builds its mask from them, and attends.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import PreTrainedModel

from pressgauge.cache import Handed
from pressgauge.history import NEVER, effective, replay
from pressgauge.models import interface, latents
from pressgauge.models.support import Support
from pressgauge.onepass_cache import Noting, OnePassCache, noted, noting
from pressgauge.presses.base import Press
from pressgauge.proof import OUTSIDE, Problems, misfit, strange_mask
from pressgauge.rules import pass_lengths
from pressgauge.softmax import PLAIN, Softmax, softmax_of
from pressgauge.storage import taken


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None, softmax: Softmax = PLAIN
) -> tuple[Tensor, Tensor]:
    """Attention output and log-sum-exp of the logits.

    Args:
        query: ``[B, K, q, D]``.
        key, value: ``[B, K, n, D]`` and ``[B, K, n, D']``.
        scale: scaling factor of the query-key products.
        bias: ``[B, K, q, n]``, minus infinity where a key is masked; None if none is.
        softmax: softmax of the layer, whose sinks are left to the caller.

    Returns:
        ``[B, K, q, D']`` and ``[B, K, q]``, computed in float32 or wider.
    """
    if query.device.type == "cpu" and key.shape[-1] == value.shape[-1] and softmax.softcap is None:
        # The kernel behind scaled_dot_product_attention, which does not return the log-sum-exp.
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output, total = fused(query, key, value, 0.0, False, attn_mask=bias, scale=scale)
        return output, total
    return softmax.attention(query, key, value, scale, bias)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    evicted_at: Tensor,
    scale: float,
    softmax: Softmax = PLAIN,
    block: int = 256,
) -> Tensor:
    """Causal attention in which query t attends to key j iff ``j <= t < evicted_at[b, k, j]``.

    No mask is larger than a block of queries times the keys that are added or evicted in it. Entries retained
    throughout a block are attended to without a mask, and the two parts are merged by their log-sum-exps.

    Args:
        query: ``[B, H, T, D]``; heads ``k * H / K`` to ``(k + 1) * H / K - 1`` read KV head k.
        key, value: ``[B, K, T, D]`` and ``[B, K, T, D']``.
        evicted_at: ``[B, K, T]`` of a press, with what leaves the layer's window as evicted.
        scale: scaling factor of the query-key products.
        softmax: softmax of the layer.
        block: number of queries per block, from the first eviction on.

    Returns:
        ``[B, H, T, D']``.
    """
    batch, query_heads, length, _ = query.shape
    heads = key.shape[1]
    # The memory layout that the model reads, which saves a copy.
    output = query.new_empty(batch, length, query_heads, value.shape[-1]).transpose(1, 2)
    whole = min(length, int(evicted_at.min())) if softmax.plain else 0
    output[:, :, :whole] = scaled_dot_product_attention(
        query[:, :, :whole],
        key[:, :, :whole],
        value[:, :, :whole],
        is_causal=True,
        scale=scale,
        enable_gqa=query_heads != heads,
    )
    key, value = key.contiguous(), value.contiguous()
    for start in range(whole, length, block):
        stop = min(start + block, length)
        before = evicted_at[:, :, :start]
        # Heads that retain fewer also get evicted entries, which the mask leaves out.
        held = int((before > start).sum(dim=-1).max()) if start else 0
        goes, order = before.topk(held)
        stay = int((goes >= stop).sum(dim=-1).min())
        new = torch.arange(start, stop, device=order.device)
        changing = torch.cat([order[:, :, stay:], new.expand(batch, heads, -1)], dim=-1)
        queries = new.int()[:, None]
        unseen = queries >= evicted_at.gather(2, changing)[:, :, None]
        # Only new entries can come after a query.
        unseen[..., held - stay :] |= new > new[:, None]
        # Fold the query heads that share a KV head into the rows of one matrix.
        rows = query[:, :, start:stop].reshape(batch, heads, -1, query.shape[-1])
        bias = torch.where(unseen.to(query.device), -torch.inf, torch.zeros((), dtype=query.dtype, device=query.device))
        if query_heads > heads:
            bias = bias.repeat(1, 1, query_heads // heads, 1)
        columns = changing.to(key.device)
        attended, total = _attend(rows, taken(key, columns), taken(value, columns), scale, bias, softmax)
        if stay:
            columns = order[:, :, :stay].to(key.device)
            held_on, held_total = _attend(rows, taken(key, columns), taken(value, columns), scale, None, softmax)
            weight = (total - held_total).sigmoid()[..., None]
            attended = held_on.lerp(attended, weight.to(attended.dtype))
            total = torch.logaddexp(total, held_total)
        # Once for both parts: the sink of a head takes part in one softmax.
        attended = softmax.share(attended, total, heads)
        output[:, :, start:stop] = attended.reshape(batch, query_heads, stop - start, -1)
    return output


NOT_DECODING = "so that one pass over a text is not what decoding computes: use method='stepwise'"


def beyond(mask: Tensor | None, window: int) -> bool:
    """Whether some query attends to a key outside its sliding window.

    Args:
        mask: ``[B or 1, 1, T, T]``, bool, or additive with 0 and a large negative number; None for no mask.
        window: size of the window in tokens, the query's own included.
    """
    if mask is None:
        return True
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return bool(seen.tril(-window).any())


class OnePass:
    """One forward pass over rows of equal length, with a press in every layer that evicts.

    Args:
        press: the press; None evicts nothing.
        supported: the model's support.
        prompt: columns of the prompt in the batch that the rows come from.
        padding: columns of padding before the rows in that batch.
        advance: called for each layer.

    Attributes:
        evicted_at: per layer, ``[B, K, columns of the batch]`` int32 on the CPU.
        entry_nbytes: per layer, bytes of one entry.
    """

    def __init__(
        self,
        press: Press | None,
        supported: Support,
        prompt: int,
        padding: int = 0,
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        self.press = press
        self.skipped = range(supported.layers) if press is None else press.skipped
        self.support = supported
        self.prompt = prompt
        self.padding = padding
        self.advance = advance
        self.evicted_at: dict[int, Tensor] = {}
        self.entry_nbytes: dict[int, int] = {}
        self._layers: dict[int, int] = {}
        self._attended: set[int] = set()
        self._cache: OnePassCache
        self._tokens = 0
        self._checked: tuple[object, int] = self, 0
        """The mask of a skipped layer checked last; these layers share a few."""
        self._problems: Problems

    def logits(self, model: PreTrainedModel, input_ids: Tensor) -> Tensor:
        """Logits ``[B, T, V]`` of rows ``[B, T]`` without padding.

        Raises:
            ValueError: if a layer that evicts did not attend to what its cache was passed, or a skipped one attends
                beyond its window.
        """
        decoder = interface.decoder_of(model)
        self._layers = interface.layer_indices(decoder)
        self._problems = Problems(self.support, decoder, tuple(self.skipped))
        self._cache = OnePassCache(config=model.config)
        self._cache.evicted_at, self._cache.padding = self.evicted_at, self.padding
        evicting = self.support.evicting(self.skipped)
        self._cache.windows = {index: window for index, window in self.support.windows.items() if index in evicting}
        self._cache.layers = [
            noting(layer) if noted(layer) or index in self._cache.windows else layer
            for index, layer in enumerate(self._cache.layers)
        ]
        self._attended = set()
        self._tokens = input_ids.shape[1]
        count = len(self._cache.layers)
        with interface.routed(decoder, self._attend):
            logits = interface.feed(model, input_ids, {interface.cache_argument(model): self._cache})
        self.support.check_added(count, len(self._cache.layers))
        for layer in range(self.support.layers):
            if layer not in evicting:
                self._note_skipped(layer, input_ids.shape)
            elif layer not in self._attended:
                self._problems.reasons.setdefault(layer, OUTSIDE)
        if self._problems.reasons:
            raise self._problems.error()
        return logits

    def _note_skipped(self, layer: int, shape: torch.Size) -> None:
        """Record the table and entry size of a layer without evictions, if it caches keys."""
        cached = interface.cached_layer(self._cache, layer)
        noted = cached.handed if isinstance(cached, Noting) else cached
        keys, values = (getattr(noted, name, None) for name in ("keys", "values"))
        if keys is None or values is None:
            return
        table = torch.full((shape[0], keys.shape[1], shape[1] + self.padding), NEVER, dtype=torch.int32)
        table[..., : self.padding] = 0
        self._note(layer, table, keys, values)

    def _note(self, layer: int, table: Tensor, keys: Tensor, values: Tensor) -> None:
        self.evicted_at[layer] = table
        self.entry_nbytes[layer] = (keys.shape[-1] + values.shape[-1]) * keys.element_size()

    def _replay(self, press: Press, query: Tensor, key: Tensor, layer: int, scale: float, softmax: Softmax) -> Tensor:
        rows, _, tokens, _ = key.shape
        columns = tokens + self.padding
        if self.padding:
            query, key = (pad(states, (0, 0, self.padding, 0)) for states in (query, key))
        passes, padding = pass_lengths(columns, self.prompt), [self.padding] * rows
        window = self.support.windows.get(layer)
        given: dict[str, Any] = {"queries": query, "scale": scale, "softmax": softmax, "window": window}
        return replay(press, key, passes, layer=layer, padding=padding, **given).cpu()

    def _decide(
        self, press: Press, module: nn.Module, query: Tensor, handed: Handed, layer: int, scale: float, softmax: Softmax
    ) -> None:
        """Replay the evictions of a layer from its own queries, and note them."""
        scored = latents.scored_keys(module, handed.keys, handed.values)
        by = latents.scored_queries(module, query, handed.keys, handed.values) if press.needs_queries else query
        self._note(layer, self._replay(press, by, scored, layer, scale, softmax), handed.keys, handed.values)

    def _attend(
        self,
        own: interface.Attention,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        index = self._layers.get(id(module))
        if index is None:
            return own(module, query, key, value, attention_mask, **kwargs)
        self.support.check_index(index)
        self.advance()
        owner = self.support.owner(index)
        cached, tokens = interface.cached_layer(self._cache, owner), query.shape[2]
        if self.press is None or owner in self.skipped:
            window = getattr(cached, "sliding_window", tokens)
            known = attention_mask is self._checked[0] and window == self._checked[1]
            if window < tokens and not known and beyond(attention_mask, window):
                raise ValueError(
                    f"{self.support.name} ({interface.VERSION}): layer {index} attends beyond the window of {window} "
                    f"tokens that its cache keeps, {NOT_DECODING}"
                )
            self._checked = attention_mask, window
            return own(module, query, key, value, attention_mask, **kwargs)
        handed = cached.handed if isinstance(cached, Noting) else None
        reason = misfit(module, kwargs, index in self._attended, handed, self._tokens, query, key, value)
        window = self.support.windows.get(owner)
        reason = reason or strange_mask(module, attention_mask, tokens, tokens, [], window)
        if reason is not None:
            plainly = partial(own, module, query, key, value, attention_mask, **kwargs)
            return self._problems.go_on(index, reason, plainly)
        scale, softmax = interface.scaling(key, kwargs), softmax_of(own, kwargs)
        assert handed is not None
        self._attended.add(index)
        if index == owner:
            self._decide(self.press, module, query, handed, index, scale, softmax)
        # A latent has one head, and expands to several.
        evicted_at = self.evicted_at[owner][..., self.padding :].expand(-1, key.shape[1], -1) - self.padding
        if int(evicted_at.min()) >= key.shape[2]:
            return own(module, query, key, value, attention_mask, **kwargs)
        output = attend(query, key, value, effective(evicted_at, window), scale, softmax=softmax)
        return output.transpose(1, 2).contiguous(), None
