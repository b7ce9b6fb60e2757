"""Perplexity under a compressor of any convention, decoded stepwise and observed from outside."""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
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
        rows = input_ids.split(1)
        singly = [perplexity(model, row, None, prompt, method="stepwise").nll for row in rows]
        return cls.between(singly, [perplexity(model, row, None, prompt).nll for row in rows], model.dtype)

    @classmethod
    def between(cls, singly: Sequence[Tensor], whole: Sequence[Tensor], dtype: torch.dtype) -> "Decoded":
        """The run from the NLL of each sample, ``[1, scored]``, decoded stepwise and in one pass."""
        nll = torch.cat(list(singly))
        return cls(nll, max(_size(nll - torch.cat(list(whole))), torch.finfo(dtype).eps))


@dataclass(frozen=True)
class Observed:
    """Result of ``observe``, of one sample or several. ``None`` stands for what cannot be known from outside.

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

    @classmethod
    def joined(cls, results: "Sequence[Observed]", decoded: Decoded) -> "Observed":
        """The result on several samples in their order, from that on each, and the uncompressed run on all of them."""
        tensors = ("nll", "scored", "hits", "affected", "unreadable", "kl", "agrees")
        cat: dict[str, Any] = {name: torch.cat([getattr(one, name) for one in results]) for name in tensors}
        held, sizes = [one.held for one in results], [one.kv_bytes for one in results]
        return cls(
            **cat,
            held=tuple(map(max, zip(*held, strict=True))) if all(held) else (),
            kv_bytes=sum(size for size in sizes if size) if all(sizes) else None,
            altered=not _size(cat["nll"] - decoded.nll) <= ROUNDING * decoded.rounding,
            left=next((one.left for one in results if one.left), ""),
        )

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
    compressor: Compressor, model: PreTrainedModel, against: Sequence[Uncompressed], numbers: Sequence[int]
) -> list[Observed]:
    """Results of samples under a compressor: the prompt in one pass, the other tokens singly.

    Each sample is a sequence of its own, for which the compressor is made anew; what it draws at random depends on the
    index of the sample only. The model is given true positions, unless the compressor declares that it changes them.

    Args:
        compressor: the compressor, resolved for the model.
        model: the model.
        against: the uncompressed run on each sample.
        numbers: indices of the samples.

    Returns:
        A result for each sample, without whether it is altered.

    Raises:
        Failed: if it raises an error, or returns what cannot be used.
        Changed: if the model cannot be put back as it was before.
    """
    comparisons = [compared_with(run) for run in against]
    before = Snapshot(model)
    progress = _Progress()
    samples: list[_Sample] = []
    try:
        for number, run, comparison in zip(numbers, against, comparisons, strict=True):
            with _seeded(number, model.device):
                progress.sample = 0
                make = compressor.maker(model, run.prompt)
                adapter = compressor.adapter(make if compressor.adapter.made_anew else make(), model)
                if adapter.between_passes and not samples:
                    _check_attention(adapter, model, run.input_ids)
                progress.sample, progress.token = number + 1, 1
                samples.append(sample := _sample(compressor, adapter, model, run.input_ids, run.prompt, progress))
            # Logits of the uncompressed run may be computed now, without the compressor.
            for place, logits in enumerate(sample.logits):
                comparison.note([0], slice(place, place + 1), logits)
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
    return [
        Observed(
            nll=sample.nll,
            scored=torch.ones_like(sample.nll, dtype=torch.bool),
            hits=sample.hits,
            affected=torch.tensor([sample.affected]),
            unreadable=torch.tensor([sample.unreadable]),
            held=sample.held,
            kv_bytes=sample.kv_bytes or None,
            altered=False,
            kl=comparison.kl,
            agrees=comparison.agrees,
            left=left,
        )
        for sample, comparison in zip(samples, comparisons, strict=True)
    ]


@contextmanager
def _seeded(number: int, device: torch.device) -> Iterator[None]:
    """Seed the generators of Python, NumPy and torch, and put them back."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


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


def _size(differences: Tensor) -> float:
    """Root mean square; infinite if a difference is not a number."""
    size = float(differences.square().mean().sqrt())
    return math.inf if math.isnan(size) else size
