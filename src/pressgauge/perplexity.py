"""Per-token NLL of a text, given to a model with a compressed cache."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from rich.progress import track
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from pressgauge.budget import pass_lengths
from pressgauge.cache import PressedCache, storage_nbytes
from pressgauge.decoder import attached, checked_mask, new_cache, own_positions
from pressgauge.history import NEVER, count_evictions
from pressgauge.press import Press

Method = Literal["stepwise", "plain"]

_BLOCK = 256
"""Tokens whose logits are copied to float64 at a time."""


@dataclass(frozen=True)
class Perplexity:
    """What ``perplexity`` returns. Scored are the tokens from the prompt's end on, by the token before each.

    Attributes:
        nll: ``[B, scored]`` in nats, float64 on the CPU; NaN where a padded row has no token to score.
        hits: ``[B, scored]`` bool: the token was the model's first choice.
        affected: ``[B, scored]`` bool: the query that scores the token missed something that had been evicted.
        evictions: entries evicted, over layers, KV heads and rows.
        held: entries that each layer holds at the end; empty where no cache was used.
        kv_bytes: bytes of key and value storage at the end.
        compressing: whether a press was asked to evict anything: there is one, and its ``keep_ratio`` is below 1.
        evicted_at: one ``[B, K, T]`` per layer, see ``pressgauge.history``; empty without a press at work.
    """

    nll: Tensor
    hits: Tensor
    affected: Tensor
    evictions: int
    held: tuple[int, ...]
    kv_bytes: int
    compressing: bool
    evicted_at: tuple[Tensor, ...]

    @property
    def scored_tokens(self) -> int:
        """How many tokens were scored."""
        return int((~self.nll.isnan()).sum())

    @property
    def ppl(self) -> float:
        """Perplexity: the exponential of the mean NLL over all scored tokens."""
        return float(self.nll.nanmean().exp())

    @property
    def accuracy(self) -> float:
        """Share of scored tokens that were the model's first choice."""
        return int(self.hits.sum()) / self.scored_tokens

    @property
    def affected_tokens(self) -> int:
        """How many scored tokens met a cache that something had been evicted from."""
        return int(self.affected.sum())

    @property
    def vacuous(self) -> bool:
        """Whether this says nothing about the press: it should have compressed, but no scored token met an eviction."""
        return self.compressing and not self.affected_tokens


def _score(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """NLL and hits, each ``[B, n]`` on the CPU, of ``targets`` ``[B, n]`` under ``logits`` ``[B, n, V]``."""
    nll, hits = [], []
    for start in range(0, targets.shape[1], _BLOCK):
        block = logits[:, start : start + _BLOCK].cpu().double()
        target = targets[:, start : start + _BLOCK].cpu()
        nll.append(cross_entropy(block.transpose(1, 2), target, reduction="none"))
        hits.append(block.argmax(dim=-1) == target)
    return torch.cat(nll, dim=1), torch.cat(hits, dim=1)


@torch.no_grad()
def perplexity(
    model: PreTrainedModel,
    input_ids: Tensor,
    press: Press | None = None,
    prompt: int = 1,
    method: Method = "stepwise",
    *,
    attention_mask: Tensor | None = None,
    progress: bool = False,
) -> Perplexity:
    """The perplexity of a text under a model, with a press at work on its cache.

    The first ``prompt`` tokens are one pass and the others are fed singly. Token i, for i from ``prompt`` on, is scored
    by the logits of token i - 1.

    Args:
        model: any causal model that goes through transformers' attention interface.
        input_ids: ``[B, T]``, padded on the left.
        press: the press; None for an uncompressed cache.
        prompt: tokens of the prompt, 1 <= prompt < T.
        method: ``stepwise`` decodes with the real cache; ``plain`` is one forward pass without a cache, in which no
            press can act: with one that should, its result is vacuous.
        attention_mask: ``[B, T]``, 0 at padding; none means that nothing is padded.
        progress: show a progress bar.

    Raises:
        ValueError: for arguments out of range, for a press that can never act, and whatever the press cannot do right.
    """
    if input_ids.dim() != 2 or not input_ids.shape[0] or input_ids.shape[1] < 2:
        raise ValueError(f"input_ids must be [batch, tokens] with at least two tokens, got {list(input_ids.shape)}")
    columns = input_ids.shape[1]
    if not 1 <= prompt < columns:
        raise ValueError(f"prompt must be at least 1 and leave one of the {columns} tokens to score, got {prompt}")
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    mask = checked_mask(input_ids, attention_mask)
    own = mask.bool()
    # A token is scored if it is one and has one before it.
    scored = (own[:, 1:] & own[:, :-1])[:, prompt - 1 :].cpu()
    if not scored.any():
        raise ValueError(f"no token after the first {prompt} has a token before it: the rows are nothing but padding")
    longest = int(mask[:, :prompt].sum(dim=-1).max())
    compressing = press is not None and press.keep_ratio < 1
    if press is not None and compressing and press.schedule == "prefill" and longest <= press.prune_after:
        raise ValueError(
            f"schedule 'prefill' acts once, after the prompt, and never with a prompt of {longest} tokens and "
            f"prune_after={press.prune_after}: give a longer prompt or a smaller prune_after"
        )
    positions = own_positions(mask)
    tables: tuple[Tensor, ...] = ()
    held: tuple[int, ...] = ()
    kv_bytes = 0
    if method == "plain":
        logits = model(input_ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        nll, hits = _score(logits[:, prompt - 1 : -1], input_ids[:, prompt:])
    else:
        cache = new_cache(press, model, prompt)
        scores = []
        seen = 0
        lengths = pass_lengths(columns, prompt)
        with attached(press, model):
            for tokens in track(lengths, description="scoring", disable=not progress, transient=True):
                end = seen + tokens
                logits = model(
                    input_ids[:, seen:end],
                    attention_mask=mask[:, :end],
                    position_ids=positions[:, seen:end],
                    past_key_values=cache,
                ).logits
                if end < columns:
                    scores.append(_score(logits[:, -1:], input_ids[:, end : end + 1]))
                seen = end
        nll, hits = (torch.cat(parts, dim=1) for parts in zip(*scores, strict=True))
        if isinstance(cache, PressedCache):
            tables = tuple(table.cpu() for table in cache.evicted_at)
            held, kv_bytes = tuple(cache.held), cache.nbytes
        else:
            held = (cache.get_seq_length(),) * len(cache.layers)
            kv_bytes = sum(storage_nbytes(layer) for layer in cache.layers)
    return Perplexity(
        nll=nll.masked_fill(~scored, float("nan")),
        hits=hits & scored,
        affected=_affected(tables, scored, prompt),
        evictions=count_evictions(tables),
        held=held,
        kv_bytes=kv_bytes,
        compressing=compressing,
        evicted_at=tables,
    )


def _affected(tables: tuple[Tensor, ...], scored: Tensor, prompt: int) -> Tensor:
    """Which scored tokens' queries came after a first eviction in their row."""
    first = torch.full((scored.shape[0],), NEVER)
    for table in tables:
        first = torch.minimum(first, table.masked_fill(table == 0, NEVER).flatten(1).amin(dim=1))
    queries = torch.arange(prompt - 1, prompt - 1 + scored.shape[1])
    return scored & (first[:, None] <= queries)
