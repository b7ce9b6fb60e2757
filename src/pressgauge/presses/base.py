"""Base class of presses, and validation of their scores.

Scores follow kvpress: higher means retain. Shapes: B batch, K KV heads, N entries, D head dimension.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from pressgauge.arguments import check_config, check_model, check_tensor, described
from pressgauge.models.support import of_model
from pressgauge.presses.attention_scores import AttentionSums, LastQueries, Votes
from pressgauge.presses.ranking import choose, rank, spare
from pressgauge.rules import Budget, Ledger

if TYPE_CHECKING:
    from pressgauge.cache import PressedCache

ATTACHED = "use with press(model):"
"""Way out of what a plain cache cannot do."""
_KEYS = "[batch, KV heads, tokens, dimension]"


@dataclass(frozen=True)
class Press(Budget, ABC):
    """A compression method: a budget, and a score that ranks entries for retention.

    A press is immutable and stateless. All state of a batch lives in the cache.
    """

    fixed_scores: ClassVar[bool] = False
    """Whether an entry's score depends on that entry alone and never changes.

    Lets caches and ``replay`` skip work. Verified at a layer's first eviction, see ``check_fixed``.
    """
    any_order: ClassVar[bool] = False
    """Whether scores are the same in whatever order the entries are given.

    Lets caches of at least 50 entries leave them where they are. Taken only from the class that defines ``score``, and
    with ``votes`` that are ``AttentionSums`` or of the last query alone, since those of several need their order.
    """
    needs_queries: ClassVar[bool] = False
    """Whether ``score`` needs ``votes``, which only an attached press has.

    Such scores are not fixed.
    """

    def votes(self) -> Votes:
        """Fresh attention state for one layer. Presses with ``needs_queries`` must override this.

        Raises:
            NotImplementedError: if not overridden.
        """
        raise NotImplementedError(f"{type(self).__name__} needs queries: define votes()")

    def pooled(self, received: NDArray[Any], empty: NDArray[Any]) -> NDArray[Any]:
        """Scores from the attention that entries received: ``[B, K, N]``, or ``[B, 1, N]`` if equal for all KV heads.

        A shortcut of ``score`` for replay on the CPU, taken only if the class that defines it also defines ``score``
        and ``votes``, and ``votes`` gives ``AttentionSums`` or ``LastQueries``.

        Args:
            received: ``[B, K, N]``, from ``votes``; not ``score``'s own, so that it may be overwritten.
            empty: ``[B, K, N]`` bool, True at slots without an entry, whose scores are ignored.
        """
        raise NotImplementedError

    @abstractmethod
    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        """Score entries; those with the highest scores are retained.

        Args:
            keys: ``[B, K, N, D]``, with the rotary embedding applied when they were added.
            positions: ``[B, K, N]``, ascending unless ``any_order``, counted in the row's own tokens; -1 at padding
                slots, whose scores are ignored. Their keys are zero, unless scores are fixed. They precede the entries
                of padded rows and, for presses with ``needs_queries``, may be anywhere, with the keys of what left the
                layer's window.
            layer: index of the layer.
            votes: the layer's attention state, the last pass included, for presses with ``needs_queries``.

        Returns:
            ``[B, K, N]``. Floating-point scores are ranked by their first 10 significant bits, integers exactly.
        """

    def compress(self, keys: Tensor, values: Tensor, *, layer: int = 0) -> tuple[Tensor, Tensor]:
        """Compress one layer's keys and values as if they had been fed in one pass.

        Args:
            keys: ``[B, K, N, D]``.
            values: ``[B, K, N, D']``.
            layer: index of the layer.

        Returns:
            Retained keys and values, in order of position; the arguments themselves if nothing is evicted.

        Raises:
            TypeError: if ``keys`` or ``values`` is not a tensor.
            ValueError: if the shapes do not match, or the press needs queries.
        """
        check_tensor("keys", keys, _KEYS)
        check_tensor("values", values, _KEYS)
        if keys.dim() != 4 or values.dim() != 4 or keys.shape[:3] != values.shape[:3]:
            raise ValueError(
                "keys and values must be [batch, KV heads, tokens, dimension] and agree in the first three, "
                f"got {list(keys.shape)} and {list(values.shape)}"
            )
        if self.needs_queries:
            raise ValueError(f"{type(self).__name__} needs queries, so it works attached only: with press(model):")
        rows, heads, tokens, _ = keys.shape
        if layer in self.skipped or not tokens or not rows or self.checked_target(tokens, tokens) == tokens:
            return keys, values
        ledger = Ledger(self)
        ledger.feed(tokens, [0] * rows)
        positions = torch.arange(tokens, device=keys.device).expand(rows, heads, tokens)
        ranks = rank_entries(self, keys, positions, layer)
        kept, _, _ = choose(spare(self, ranks, positions, ledger.balance), positions, ledger.held)
        return tuple(t.gather(2, kept[..., None].expand(-1, -1, -1, t.shape[-1])) for t in (keys, values))  # type: ignore[return-value]

    # `cache` and `attach` are higher layers that import this module, so they are imported lazily.

    def cache(
        self, config: PretrainedConfig, *, prompt_length: int | None = None, unpadded: bool = False
    ) -> "PressedCache":
        """A cache for ``model.generate`` and plain forward calls, with stock attention.

        Pass it as ``cache=`` since transformers 5.24, see ``pressgauge.cache_argument``.

        Args:
            config: the model's configuration.
            prompt_length: tokens of the prompt; by default the first pass is the prompt.
            unpadded: asserts that no row is padded, which a cache cannot see; required with more than one row.

        Raises:
            TypeError: if ``config`` is not a configuration.
            ValueError: if this press does not support the model, or needs queries.
        """
        from pressgauge.cache import PressedCache

        check_config(config)
        if self.needs_queries:
            raise ValueError(f"{type(self).__name__} needs queries, which a cache never sees: {ATTACHED}")
        return PressedCache(self, config, prompt_length=prompt_length, unpadded=unpadded)

    def __call__(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """Attach the press: inside ``with press(model):`` every cache of the model is compressed.

        Issues a ``VacuousWarning`` at the end if no query of the passes inside met an eviction.

        Raises:
            TypeError: if ``model`` is not a model.
            ValueError: if this press does not support the model, or the model already has a press attached.
        """
        from pressgauge.attach import attach

        check_model(model)
        return attach(self, model)

    def resolved(self, model: PreTrainedModel) -> Self:
        """This press with ``skip_layers`` resolved to layer indices of ``model``, as when attached.

        Raises:
            TypeError: if ``model`` is not a model.
            ValueError: if this press does not support the model; the message lists all reasons.
        """
        check_model(model)
        return of_model(model).resolve(self)


def together(press: Press, *names: str) -> bool:
    """Whether one class defines all these attributes of a press, so that a derived class has overridden none of them
    alone."""
    return len({next(kind for kind in type(press).__mro__ if name in vars(kind)) for name in names}) == 1


def takes_any_order(press: Press) -> bool:
    """Whether a press may be given entries in any order, see ``Press.any_order``."""
    if press.fixed_scores:
        return True
    if not press.any_order or not together(press, "any_order", "score"):
        return False
    votes = press.votes() if press.needs_queries else None
    return votes is None or type(votes) is AttentionSums or (type(votes) is LastQueries and votes.most == 1)


def check_press(press: object) -> None:
    """Raise ``TypeError`` unless ``press`` is a press, or None for an uncompressed cache."""
    if press is not None and not isinstance(press, Press):
        raise TypeError(f"press must be a press such as KnormPress(0.5), or None for no press, got {described(press)}")


def score_entries(press: Press, keys: Tensor, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
    """Scores of a press, validated. Arguments are those of ``Press.score``.

    Returns:
        ``[B, K, N]``.

    Raises:
        TypeError: if the scores are not a tensor.
        ValueError: if the scores are not ``[B, K, N]``.
    """
    scores = press.score(keys, positions=positions, layer=layer, votes=votes)
    shape = "[batch, KV heads, entries] with one score per key"
    check_tensor(f"the scores of {type(press).__name__}", scores, shape)
    if scores.shape != positions.shape:
        raise ValueError(
            f"the scores of {type(press).__name__} must be {list(positions.shape)}, {shape}, got {list(scores.shape)}"
        )
    return scores


def rank_entries(
    press: Press, keys: Tensor, positions: Tensor, layer: int, votes: Votes | None = None, *, first: bool = False
) -> Tensor:
    """Rank the scores of a press. Arguments are those of ``Press.score``.

    Args:
        first: whether this is the layer's first ranking, at which ``fixed_scores`` is verified.

    Returns:
        ``[B, K, N]`` int64, see ``rank``.

    Raises:
        TypeError: as ``score_entries``.
        ValueError: as ``score_entries``, or if the scores are not fixed although ``fixed_scores`` is set.
    """
    scores = score_entries(press, keys, positions, layer, votes)
    if first and press.fixed_scores:
        check_fixed(press, scores, keys, positions, layer)
    return rank(scores, positions, press.sinks)


_LOOKED_AT = 64
"""Maximum number of entries that ``check_fixed`` rescores at a time."""


def check_fixed(press: Press, scores: Tensor, keys: Tensor, positions: Tensor, layer: int) -> None:
    """Verify ``fixed_scores`` by scoring subsets of the entries.

    Rescores the first entries without the later ones, then the middle entry alone. A score that depends on other
    entries, on their number, or on the time of the call changes in one of the two.

    Args:
        press: the press.
        scores: ``[B, K, N]``, its scores of all entries.
        keys, positions, layer: the arguments that gave ``scores``, as in ``Press.score``.

    Raises:
        ValueError: if a score changes.
    """
    entries = scores.shape[-1]
    middle = entries // 2
    allowed: Tensor | None = None
    if scores.is_floating_point():
        # A kernel may sum in another order for another shape, even if the scores are fixed. The rounding error scales
        # with the terms, which may be larger than their sum. So the tolerance is relative to the largest score of the
        # head: 12 of the 24 bits of float32 must agree, or all but two of narrower dtypes.
        eps = max(torch.finfo(t.dtype).eps for t in (scores, keys) if t.is_floating_point())
        sizes = scores.masked_fill(positions < 0, 0).abs().nan_to_num(0, 0, 0)
        allowed = sizes.amax(dim=-1, keepdim=True) * max(2**-12, 4 * eps)
    for part in (slice(0, max(1, min(middle, _LOOKED_AT))), slice(middle, middle + 1)):
        again = press.score(keys[:, :, part], positions=positions[:, :, part], layer=layer)
        before, own = scores[..., part], positions[..., part] >= 0
        same = (again == before) | again.isnan() & before.isnan()
        if allowed is not None:
            same |= (again - before).abs() <= allowed
        if bool((same | ~own).all()):
            continue
        row, head, entry = (~same & own).nonzero()[0].tolist()
        position = int(positions[row, head, part.start + entry])
        raise ValueError(
            f"{type(press).__name__} declares fixed_scores = True, but in layer {layer} the score of the entry at "
            f"position {position} was {float(before[row, head, entry]):.6g} among {entries} entries and then "
            f"{float(again[row, head, entry]):.6g} among {part.stop - part.start}: set fixed_scores = False in the "
            "class"
        )
