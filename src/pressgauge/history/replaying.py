"""``replay``: eviction history of given keys under a press, without decoding."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pressgauge.arguments import check_tensor
from pressgauge.history.changing import replay_changing
from pressgauge.history.fixed import replay_fixed
from pressgauge.history.plan import plan_of, protects_recent_only
from pressgauge.history.record import History
from pressgauge.history.windowed import replay_windowed
from pressgauge.presses.base import Press, check_press, rank_entries
from pressgauge.rules import Ledger, Window, whole_number, whole_numbers
from pressgauge.softmax import PLAIN, Softmax


def replay(
    press: Press,
    keys: Tensor,
    passes: Sequence[int],
    *,
    layer: int = 0,
    prompt_length: int | None = None,
    padding: Sequence[int] | None = None,
    queries: Tensor | None = None,
    scale: float | None = None,
    softmax: Softmax = PLAIN,
    window: Window | None = None,
) -> Tensor:
    """Compute what a press evicts from a layer that is fed the given keys, without decoding.

    Given the keys passed to a cache, the result equals the cache's own record exactly, in every dtype. For presses that
    need queries it does so in float64, since attention is summed in a different order.

    Args:
        press: the press.
        keys: ``[B, K, T, D]``, with the rotary embedding applied when they were added.
        passes: number of tokens in each pass; they sum to T.
        layer: index of the layer.
        prompt_length: tokens of the prompt; by default the first pass is the prompt.
        padding: number of leading columns that are padding, per row.
        queries: ``[B, H, T, D]``, for presses that need them.
        scale: scaling factor of the query-key products; ``D ** -0.5`` by default.
        softmax: softmax of the layer, for those with a softcap or sinks.
        window: the layer's sliding window or chunks; None if its queries see all tokens before them.

    Returns:
        ``evicted_at``: ``[B, K, T]`` int32.

    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: if the passes do not sum to T, the shapes or the padding do not match, or the press needs queries
            and there are none.
    """
    if press is None:
        raise TypeError("press must be a press such as KnormPress(0.5), got None: without one nothing is evicted")
    check_press(press)
    check_tensor("keys", keys, "[batch, KV heads, tokens, dimension]")
    if keys.dim() != 4:
        raise ValueError(f"keys must be [batch, KV heads, tokens, dimension], got {list(keys.shape)}")
    rows, heads, columns, _ = keys.shape
    passes = whole_numbers("passes", passes)
    if sum(passes) != columns or any(tokens < 1 for tokens in passes):
        raise ValueError(
            f"passes must be positive and add up to the {columns} tokens of keys, got {len(passes)} passes "
            f"of {sum(passes)} tokens"
        )
    pads = [0] * rows if padding is None else whole_numbers("padding", padding)
    if len(pads) != rows or any(not 0 <= pad <= columns for pad in pads):
        raise ValueError(f"padding must give each of the {rows} rows a number from 0 to {columns}, got {pads}")
    if press.needs_queries and queries is None:
        raise ValueError(f"{type(press).__name__} needs queries: pass those of all {columns} tokens")
    if queries is not None:
        check_tensor("queries", queries, "[batch, heads, tokens, dimension]")
    if queries is not None and (queries.dim() != 4 or (queries.shape[0], queries.shape[2]) != (rows, columns)):
        raise ValueError(f"queries must be [{rows}, heads, {columns}, dimension] like keys, got {list(queries.shape)}")
    if whole_number("layer", layer, 0) in press.skipped:
        return History(rows, heads, keys.device).evicted_at(columns, pads)
    scale = keys.shape[3] ** -0.5 if scale is None else scale
    # A window that the next query still sees whole is none.
    if window is not None and window.first(columns):
        ledger = Ledger(press, prompt_length)
        return replay_windowed(press, keys, layer, passes, ledger, pads, queries, scale, softmax, window)
    plan = plan_of(press, passes, prompt_length, pads)
    if not plan.cuts:
        return History(rows, heads, keys.device).evicted_at(columns, pads)
    if press.fixed_scores:
        positions = torch.arange(columns, device=keys.device) - torch.tensor(pads, device=keys.device)[:, None, None]
        positions = positions.clamp(min=-1).expand(rows, heads, columns)
        ranks = rank_entries(press, keys, positions, layer, first=True)
        if protects_recent_only(press):
            return replay_fixed(ranks, plan.slots, pads)
    return replay_changing(press, keys, layer, plan.cuts, pads, queries, scale, softmax)
