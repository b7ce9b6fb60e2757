"""A whole text in one forward pass, with every query seeing what a compressed cache would still hold.

Under teacher forcing, what a layer evicts depends on the keys and queries of that layer alone, and an ordinary forward
pass has those of all tokens at once: so each layer replays its evictions, masks by them, and attends.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import PreTrainedModel

from pressgauge.attention import implementation, layer_indices, refuse_arguments, registered, scaling
from pressgauge.budget import pass_lengths
from pressgauge.cache import bypassed
from pressgauge.history import NEVER, entries, replay
from pressgauge.press import Press


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention ``[B, K, q, D']`` and the logarithm of its sum ``[B, K, q]``, in float32 or wider.

    Args:
        query: ``[B, K, q, D]``.
        key, value: ``[B, K, n, D]`` and ``[B, K, n, D']``.
        scale: what products of queries and keys are multiplied by.
        bias: ``[B, K, q, n]``, minus infinity where a key is not seen; None if all are.
    """
    if query.device.type == "cpu" and key.shape[-1] == value.shape[-1]:
        # The kernel behind scaled_dot_product_attention, which does not hand on the sum.
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output, total = fused(query, key, value, 0.0, False, attn_mask=bias, scale=scale)
        return output, total
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(wide) @ key.to(wide).mT * scale
    if bias is not None:
        scores += bias
    total = scores.logsumexp(dim=-1)
    return (scores - total[..., None]).exp() @ value.to(wide), total


def attend(query: Tensor, key: Tensor, value: Tensor, evicted_at: Tensor, scale: float, *, block: int = 256) -> Tensor:
    """Causal attention in which query t sees key j if and only if ``j <= t < evicted_at[b, k, j]``.

    No mask is larger than a block of queries times the keys that come or go in it. What is held throughout a block is
    attended to without a mask, and the two parts are merged by the logarithms of their sums.

    Args:
        query: ``[B, H, T, D]``; heads ``k * H / K`` to ``(k + 1) * H / K - 1`` read KV head k.
        key, value: ``[B, K, T, D]`` and ``[B, K, T, D']``.
        evicted_at: ``[B, K, T]`` of a press, so that at any time all heads hold equally many.
        scale: what products of queries and keys are multiplied by.
        block: how many queries are attended to together once anything has been evicted.

    Returns:
        ``[B, H, T, D']``.
    """
    batch, query_heads, length, _ = query.shape
    heads = key.shape[1]
    # In the order in which the model reads it.
    output = query.new_empty(batch, length, query_heads, value.shape[-1]).transpose(1, 2)
    whole = min(length, int(evicted_at.min()))
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
        held = int((before[0, 0] > start).sum())
        goes, order = before.topk(held)
        stay = int((goes >= stop).sum(dim=-1).min())
        new = torch.arange(start, stop, device=order.device)
        changing = torch.cat([order[:, :, stay:], new.expand(batch, heads, -1)], dim=-1)
        queries = new.int()[:, None]
        unseen = queries >= evicted_at.gather(2, changing)[:, :, None]
        # Only new entries can be later than a query.
        unseen[..., held - stay :] |= new > new[:, None]
        # Queries that read the same KV head are rows of one matrix.
        rows = query[:, :, start:stop].reshape(batch, heads, -1, query.shape[-1])
        bias = torch.where(unseen.to(query.device), -torch.inf, torch.zeros((), dtype=query.dtype, device=query.device))
        if query_heads > heads:
            bias = bias.repeat(1, 1, query_heads // heads, 1)
        columns = changing.to(key.device)
        attended, total = _attend(rows, entries(key, columns), entries(value, columns), scale, bias)
        if stay:
            columns = order[:, :, :stay].to(key.device)
            held_on, held_total = _attend(rows, entries(key, columns), entries(value, columns), scale, None)
            weight = (total - held_total).sigmoid()[..., None]
            attended = held_on.lerp(attended, weight.to(attended.dtype))
        output[:, :, start:stop] = attended.reshape(batch, query_heads, stop - start, -1)
    return output


class OnePass:
    """One forward pass over rows of equal length, with a press at work in every layer that it may prune.

    Args:
        press: the press; None evicts nothing.
        prompt: columns of the prompt, of the batch that the rows come from.
        padding: columns in front of the rows in that batch.
        advance: called after each layer.

    Attributes:
        evicted_at: per layer ``[B, K, columns of the batch]`` on the CPU.
        entry_nbytes: per layer, bytes of one entry.
    """

    def __init__(
        self, press: Press | None, prompt: int, padding: int = 0, advance: Callable[[], None] = lambda: None
    ) -> None:
        self.press = press
        self.prompt = prompt
        self.padding = padding
        self.advance = advance
        self.evicted_at: dict[int, Tensor] = {}
        self.entry_nbytes: dict[int, int] = {}
        self._layers: dict[int, int] = {}
        self._implementation = ""

    def logits(self, model: PreTrainedModel, input_ids: Tensor) -> Tensor:
        """``[B, T, V]`` of rows ``[B, T]`` without padding."""
        decoder: Any = model.get_decoder()
        self._layers = layer_indices(decoder)
        self._implementation = decoder.config._attn_implementation
        with registered(decoder, self._attend):
            logits: Tensor = model(input_ids, use_cache=False).logits
        if self.press is not None:
            met = {*self.evicted_at, *self.press.skip_layers}
            layers = decoder.config.get_text_config(decoder=True).num_hidden_layers
            if left_out := [layer for layer in range(layers) if layer not in met]:
                raise bypassed(left_out[0])
        return logits

    def _replay(self, query: Tensor, key: Tensor, layer: int, scale: float) -> Tensor:
        rows, heads, tokens, _ = key.shape
        columns = tokens + self.padding
        if self.press is None or layer in self.press.skip_layers:
            table = torch.full((rows, heads, columns), NEVER, dtype=torch.int32)
            table[..., : self.padding] = 0
            return table
        if self.padding:
            query, key = (pad(states, (0, 0, self.padding, 0)) for states in (query, key))
        passes, padding = pass_lengths(columns, self.prompt), [self.padding] * rows
        return replay(self.press, key, passes, layer=layer, padding=padding, queries=query, scale=scale).cpu()

    def _attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        own = implementation(self._implementation, module)
        index = self._layers.get(id(module))
        if index is None:
            return own(module, query, key, value, attention_mask, **kwargs)
        if self.press is not None and index not in self.press.skip_layers:
            refuse_arguments(kwargs, index)
        scale = scaling(key, kwargs)
        table = self._replay(query, key, index, scale)
        self.evicted_at[index] = table
        self.entry_nbytes[index] = (key.shape[-1] + value.shape[-1]) * key.element_size()
        self.advance()
        evicted_at = table[..., self.padding :] - self.padding
        if int(evicted_at.min()) >= key.shape[2]:
            return own(module, query, key, value, attention_mask, **kwargs)
        output = attend(query, key, value, evicted_at, scale)
        return output.transpose(1, 2).contiguous(), None
