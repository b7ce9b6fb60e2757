"""Perplexity under a compressor of any convention, decoded stepwise and observed from outside."""

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pressgauge.bench.compressors import Compressor, Failed
from pressgauge.conventions.adapter import Adapter, Layers
from pressgauge.conventions.state import Snapshot
from pressgauge.likelihood import compared_with, perplexity, score
from pressgauge.models import interface
from pressgauge.observation import watch
from pressgauge.observation.readings import UNREADABLE, Reader, nbytes
from pressgauge.references import why
from pressgauge.rules import pass_lengths
from pressgauge.uncompressed import Uncompressed

ROUNDING = 2
"""The NLL is altered if it differs from that of an uncompressed run by more than this multiple of rounding."""


class Changed(Failed):
    """A compressor left the model changed, so nothing more can be measured with it."""


@dataclass(frozen=True)
class Decoded:
    """The uncompressed run, decoded stepwise.

    Attributes:
        nll: ``[B, scored]`` in nats, float64.
        rounding: root mean square of its difference from the same in one pass.
    """

    nll: Tensor
    rounding: float

    @classmethod
    def of(cls, model: PreTrainedModel, input_ids: Tensor, prompt: int) -> "Decoded":
        """Measure it."""
        rows = [perplexity(model, row, None, prompt, method="stepwise").nll for row in input_ids.split(1)]
        nll, whole = torch.cat(rows), perplexity(model, input_ids, None, prompt).nll
        return cls(nll, max(_size(nll - whole), torch.finfo(model.dtype).eps))


@dataclass(frozen=True)
class Observed:
    """Result of ``observe``. ``None`` stands for what cannot be known from outside.

    Attributes:
        nll, scored, hits: as in ``Perplexity``.
        affected: ``[B, scored]`` bool: the query was seen to meet an eviction.
        unreadable: ``[B, scored]`` bool: it is not known whether the query met one.
        held: entries of each layer at the end; empty if a layer cannot be read.
        kv_bytes: bytes of the storages of all tensors of the caches at the end.
        kl, agrees: as in ``Perplexity``.
        altered: whether the NLL differs from that of an uncompressed run by more than rounding.
        left: what the compressor left changed in the model, which was undone; empty if nothing.
    """

    nll: Tensor
    scored: Tensor
    hits: Tensor
    affected: Tensor
    unreadable: Tensor
    held: tuple[int, ...]
    kv_bytes: int | None
    altered: bool
    kl: Tensor
    agrees: Tensor
    left: str = ""
    evicted_at: tuple[()] = ()
    evictions: None = None

    @property
    def scored_tokens(self) -> int:
        """Number of scored tokens."""
        return self.nll.numel()

    @property
    def ppl(self) -> float:
        """Perplexity: exponential of the mean NLL of all scored tokens; NaN if any NLL is NaN."""
        return float(self.nll.mean().exp())

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy over scored tokens, from 0 to 1."""
        return int(self.hits.sum()) / self.scored_tokens

    @property
    def kl_divergence(self) -> float:
        """Mean KL divergence from the uncompressed distribution over scored tokens, in nats."""
        return float(self.kl.mean())

    @property
    def agreement(self) -> float:
        """Share of scored tokens with the top-1 prediction of the uncompressed model, from 0 to 1."""
        return int(self.agrees.sum()) / self.scored_tokens

    @property
    def affected_tokens(self) -> int | None:
        """Tokens scored by a query that was seen to meet an eviction; None if none was seen and some are unreadable."""
        return int(self.affected.sum()) if self.affected.any() or not self.unreadable.any() else None

    @property
    def unreadable_tokens(self) -> int:
        """Number of tokens scored by a query of which it is not known whether it met one."""
        return int(self.unreadable.sum())

    @property
    def vacuous(self) -> bool:
        """Whether the result is that of the uncompressed model: no eviction was met, and the NLL is not altered."""
        return not self.affected_tokens and not self.altered


@torch.no_grad()
def observe(
    compressor: Compressor, model: PreTrainedModel, input_ids: Tensor, decoded: Decoded, against: Uncompressed
) -> Observed:
    """Perplexity under a compressor: the prompt in one pass, the other tokens singly.

    Each sample is a sequence of its own. The model is given true positions, unless the compressor declares that it
    changes them.

    Args:
        compressor: the compressor, resolved for the model.
        model: the model.
        input_ids: ``[B, T]``.
        decoded: the uncompressed run, decoded stepwise.
        against: the uncompressed run on these samples, with its prompt.

    Raises:
        Failed: if it raises an error, or returns what cannot be used.
        Changed: if the model cannot be put back as it was before.
    """
    before, prompt, comparison = Snapshot(model), against.prompt, compared_with(against)
    progress = _Progress()
    try:
        make = compressor.maker(model, prompt)
        adapter = compressor.adapter(make if compressor.adapter.made_anew else make(), model)
        if adapter.between_passes:
            _check_attention(adapter, model, input_ids[:1])
        samples = []
        for number, row in enumerate(input_ids.split(1), 1):
            progress.sample, progress.token = number, 1
            samples.append(sample := _sample(compressor, adapter, model, row, prompt, progress))
            # Logits of the uncompressed run may be computed now, without the compressor.
            for place, logits in enumerate(sample.logits):
                comparison.note([number - 1], slice(place, place + 1), logits)
            sample.logits.clear()
        error: BaseException | None = None
    except (Exception, SystemExit) as raised:
        error = raised
    # Also after a failure, which may have left the model as it was in the middle.
    if left := before.difference():
        before.restore()
        if kept := before.difference():
            failed = f" ({progress}: {why(error)})" if error else ""
            raise Changed(f"left the model changed{failed}: {kept}") from error
    if error is not None:
        raise Failed(f"failed {progress}: {why(error)}") from error
    nll = torch.cat([sample.nll for sample in samples])
    return Observed(
        nll=nll,
        scored=torch.ones_like(nll, dtype=torch.bool),
        hits=torch.cat([sample.hits for sample in samples]),
        affected=torch.tensor([sample.affected for sample in samples]),
        unreadable=torch.tensor([sample.unreadable for sample in samples]),
        held=_most([sample.held for sample in samples]),
        kv_bytes=sum(sample.kv_bytes for sample in samples) if all(sample.kv_bytes for sample in samples) else None,
        altered=not _size(nll - decoded.nll) <= ROUNDING * decoded.rounding,
        kl=comparison.kl,
        agrees=comparison.agrees,
        left=left,
    )


@dataclass
class _Progress:
    """Where a measurement is, for messages."""

    sample: int = 0
    token: int = 0

    def __str__(self) -> str:
        return f"in sample {self.sample} at token {self.token}" if self.sample else "when it was made"


@dataclass(frozen=True)
class _Sample:
    nll: Tensor
    hits: Tensor
    affected: list[bool]
    unreadable: list[bool]
    held: tuple[int, ...]
    kv_bytes: int
    logits: list[Tensor]


def _sample(
    compressor: Compressor, adapter: Adapter, model: PreTrainedModel, ids: Tensor, prompt: int, progress: _Progress
) -> _Sample:
    """Decode one sample, ``[1, T]``, with a cache of its own."""
    name = interface.cache_argument(model)
    columns = ids.shape[1]
    positioned = compressor.declares.get("positions") != "rerotated" and interface.takes_positions(
        interface.decoder_of(model)
    )
    after_pass = compressor.declares.get("after_pass")
    scores, affected, unreadable, scoring = [], [], [], []
    seen_tokens = met = unknown = 0
    with ExitStack() as stack:
        cache = adapter.start()
        stack.enter_context(adapter.at_work())
        # Inside, so that its hooks see what the compressor's own have done.
        seen = stack.enter_context(watch(model))
        for tokens in pass_lengths(columns, prompt):
            progress.token = seen_tokens + tokens
            end = seen_tokens + tokens
            positions = torch.arange(seen_tokens, end, device=ids.device)[None] if positioned else None
            logits = interface.feed(model, ids[:, seen_tokens:end], {name: cache}, None, positions)
            if adapter.between_passes:
                _compress(adapter, cache)
            if after_pass is not None:
                after_pass(cache)
            now, then = (seen.affected_queries, seen.unreadable_queries), (met, unknown)
            met, unknown = now
            if end < columns:
                scoring.append(logits[:, -1:].cpu())
                scores.append(score(logits[:, -1:], ids[:, end : end + 1]))
                affected.append(now[0] > then[0])
                unreadable.append(now[1] > then[1])
            seen_tokens = end
        held: list[int | None] = seen.held
        if adapter.between_passes or after_pass is not None:
            held = Reader(interface.decoder_of(model).config).read(cache).held
        size = nbytes(cache)
    nll, hits = (torch.cat(parts, dim=1) for parts in zip(*scores, strict=True))
    known = tuple(entries or 0 for entries in held)
    return _Sample(nll, hits, affected, unreadable, () if UNREADABLE in known else known, size, scoring)


def _compress(adapter: Adapter, cache: Any) -> None:
    """Apply a function over the cache, which is a ``DynamicCache``."""
    layers: Layers = [(layer.keys, layer.values) for layer in cache.layers]
    found: Any = adapter.compress(list(layers))
    if not isinstance(found, list | tuple) or len(found) != len(layers):
        raise ValueError(f"the function must return {len(layers)} pairs of keys and values, got {type(found).__name__}")
    for index, (pair, (own, _)) in enumerate(zip(found, layers, strict=True)):
        keys, values = pair
        if keys.dim() != 4 or keys.shape[:3] != values.shape[:3] or keys.shape[:2] != own.shape[:2]:
            raise ValueError(
                f"the function returned keys {list(keys.shape)} and values {list(values.shape)} for layer {index} of "
                f"{list(own.shape)}; only the number of entries may change, and by the same for both"
            )
        cache.layers[index].keys, cache.layers[index].values = keys, values


def _check_attention(adapter: Adapter, model: PreTrainedModel, ids: Tensor) -> None:
    """Raise ``ValueError`` if the attention that serves a function over the cache is not that of the model."""
    plain = interface.feed(model, ids, {})
    with adapter.at_work():
        own = interface.feed(model, ids, {})
    change = float((plain - own).abs().max() / plain.abs().max())
    if not change <= max(1e-4, 32 * torch.finfo(plain.dtype).eps):
        raise ValueError(
            f"{type(model).__name__} attends in a way of its own (logits differ by {change:.1e} of their size), for "
            "which a function over the cache cannot be measured: make it a cache or a context manager"
        )


def _most(held: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Entries of each layer in the sample that holds most; empty if unknown in one."""
    return tuple(map(max, zip(*held, strict=True))) if all(held) else ()


def _size(differences: Tensor) -> float:
    """Root mean square; infinite if a difference is not a number."""
    size = float(differences.square().mean().sqrt())
    return math.inf if math.isnan(size) else size
