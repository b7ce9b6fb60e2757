"""Results of a run over a text, and the uncompressed run that others are compared with."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pressgauge.divergence import Comparison, Held

MOST_HELD = 1 << 31
"""Bytes of uncompressed logits that are held, by default."""


@dataclass(frozen=True)
class Perplexity:
    """Result of ``perplexity``, over the tokens from the end of the prompt on.

    Attributes:
        nll: ``[B, scored]`` in nats, float64 on the CPU; NaN where a padded row has no token to score.
        scored: ``[B, scored]`` bool: the row has this token and one before it.
        hits: ``[B, scored]`` bool: the token was the model's top-1 prediction.
        affected: ``[B, scored]`` bool: entries of the row had been evicted when the token was scored.
        evictions: number of evicted entries, over layers, KV heads and rows.
        held: retained entries of each layer at the end; empty with ``plain``.
        kv_bytes: bytes of keys and values at the end; with ``stepwise``, of their storage, which may be 2 % more.
        compressing: whether there is a press with a ``keep_ratio`` below 1.
        evicted_at: ``[B, K, T]`` int32 per layer, see ``pressgauge.history``; empty without a press or with ``plain``.
        kl: ``[B, scored]`` float64: KL(uncompressed || compressed) of the distributions that predict the token, in
            nats; NaN where a padded row has no token to score, or a logit is NaN. None without ``against``.
        agrees: ``[B, scored]`` bool: the top-1 prediction is that of the uncompressed model. None without ``against``.
    """

    nll: Tensor
    scored: Tensor
    hits: Tensor
    affected: Tensor
    evictions: int
    held: tuple[int, ...]
    kv_bytes: int
    compressing: bool
    evicted_at: tuple[Tensor, ...]
    kl: Tensor | None = None
    agrees: Tensor | None = None

    @property
    def scored_tokens(self) -> int:
        """Number of scored tokens."""
        return int(self.scored.sum())

    @property
    def ppl(self) -> float:
        """Perplexity: exponential of the mean NLL of all scored tokens; NaN if any NLL is NaN."""
        return float(self.nll[self.scored].mean().exp())

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy over scored tokens, from 0 to 1."""
        return int(self.hits.sum()) / self.scored_tokens

    @property
    def kl_divergence(self) -> float | None:
        """Mean KL divergence from the uncompressed distribution over scored tokens, in nats."""
        return None if self.kl is None else float(self.kl[self.scored].mean())

    @property
    def agreement(self) -> float | None:
        """Share of scored tokens with the top-1 prediction of the uncompressed model, from 0 to 1."""
        return None if self.agrees is None else int(self.agrees.sum()) / self.scored_tokens

    @property
    def affected_tokens(self) -> int:
        """Number of tokens scored after a first eviction in their row."""
        return int(self.affected.sum())

    @property
    def vacuous(self) -> bool:
        """Whether the result is meaningless: compressing, yet no scored token was affected."""
        return self.compressing and not self.affected_tokens


class Uncompressed:
    """The uncompressed run on a text, which presses are compared with: ``perplexity(..., against=...)``.

    It runs once: as ``perplexity(model, input_ids, None, prompt, against=...)``, or before the first comparison. Its
    logits are held in the main memory, up to a limit. Where they are more, its passes beyond the limit are computed
    again for each comparison, which takes the time of an uncompressed run.

    Args:
        model, input_ids, prompt, attention_mask: as in ``perplexity``.
        most_bytes: limit of the logits held.

    Attributes:
        result: the run, whose distance from itself is 0; None before it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        prompt: int = 1,
        *,
        attention_mask: Tensor | None = None,
        most_bytes: int = MOST_HELD,
    ) -> None:
        self.model = model
        self.input_ids = input_ids
        self.prompt = prompt
        self.attention_mask = attention_mask
        self.most_bytes = most_bytes
        self.result: Perplexity | None = None
        self._held: Held

    def check(self, model: PreTrainedModel, input_ids: Tensor, mask: Tensor, prompt: int) -> None:
        """Raise ``ValueError`` for a run of another model or on another text."""
        own = torch.ones_like(mask) if self.attention_mask is None else self.attention_mask
        same = model is self.model and prompt == self.prompt and input_ids.shape == self.input_ids.shape
        if not same or not all(bool((one == other).all()) for one, other in ((input_ids, self.input_ids), (mask, own))):
            raise ValueError(
                "against must be the uncompressed run of the same model, input_ids, attention_mask and prompt, "
                "and is one of others"
            )

    def begin(self, again: Callable[[list[int], slice], Tensor]) -> Comparison:
        """A comparison of this run, which begins, with itself.

        Args:
            again: computes logits of this run again, see ``Held``.
        """
        self._held = Held(self.most_bytes, again)
        return self.comparison()

    def comparison(self) -> Comparison:
        """A comparison of a run with this one, which has run."""
        return Comparison(self._held, len(self.input_ids), self.input_ids.shape[1] - self.prompt)

    def close(self, result: Perplexity) -> None:
        """Take the run that ended for this one, if this one has not run."""
        if self.result is None:
            self.result, self._held.open = result, False
