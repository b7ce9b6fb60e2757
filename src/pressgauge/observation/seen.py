"""``watch``: what passes through a model met, in one line around any evaluation."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, get_args

from transformers import PreTrainedModel

from pressgauge import formats
from pressgauge.arguments import check_model, described
from pressgauge.observation.recorder import Recorder

Requirement = Literal["evictions"]


class Seen:
    """What a watch has seen up to now, or until it closed. ``str(seen)`` is three lines.

    A query *meets an eviction* if, when its pass began, its cache held fewer entries than its row had tokens, in some
    layer. The counts of queries are lower bounds: what cannot be read from outside is counted in
    ``unreadable_queries``, and an eviction inside a pass is met by the passes after it.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    @property
    def passes(self) -> int:
        """Forward passes of the decoder."""
        return self._recorder.counted().passes

    @property
    def tokens(self) -> int:
        """Tokens fed, which are also the queries: rows counted singly, without padding under a 2-D mask."""
        return self._recorder.counted().tokens

    @property
    def longest(self) -> int:
        """Tokens seen by the cache that has seen most, in its longest row; of equal ones, the last."""
        return self._recorder.counted().longest

    @property
    def held(self) -> list[int | None]:
        """Entries per KV head in each layer of that cache after its last pass, in its longest row.

        None for a layer that caches no keys of its own, -1 for one whose layout is unknown.
        """
        return list(self._recorder.counted().held)

    @property
    def affected_queries(self) -> int:
        """Queries that met an eviction."""
        return self._recorder.counted().affected_queries

    @property
    def window_queries(self) -> int:
        """Queries that met no eviction, but a sliding window of the model, beyond which it stores and reads nothing."""
        return self._recorder.counted().window_queries

    @property
    def unreadable_queries(self) -> int:
        """Queries of which it is not known whether they met an eviction.

        Their cache has an unknown layout, was fed before the watch or in a pass that failed, or was changed between
        passes in a way that may be a crop or an eviction.
        """
        return self._recorder.counted().unreadable_queries

    @property
    def logits(self) -> int:
        """Tokens whose logits the passes returned, without padding."""
        return self._recorder.counted().logits

    @property
    def affected_logits(self) -> int:
        """Of these, those of queries that met an eviction."""
        return self._recorder.counted().affected_logits

    @property
    def positions(self) -> int:
        """Tokens whose position could be compared with the tokens seen."""
        return self._recorder.counted().positions

    @property
    def wrong_positions(self) -> int:
        """Of these, those whose position is not the number of tokens before them in their row."""
        return self._recorder.counted().wrong_positions

    @property
    def nbytes(self) -> int:
        """Bytes of the largest cache after a pass: the storages of all tensors that can be reached from it."""
        return self._recorder.counted().nbytes

    @property
    def vacuous(self) -> bool:
        """Whether no query was seen to meet an eviction: then what was measured is the uncompressed model, unless
        there are ``unreadable_queries``.
        """
        return not self.affected_queries

    def __str__(self) -> str:
        return "\n".join((self._fed(), self._met(), self._placed()))

    def _fed(self) -> str:
        held = [entries for entries in self.held if entries is not None]
        line = f"{self.passes} {'pass' if self.passes == 1 else 'passes'} fed {self.tokens} tokens"
        if not self.longest or not held:
            return f"{line}, without a cache."
        low, high = min(held), max(held)
        entries = "layers that cannot be read"
        if low >= 0:
            entries = f"{low} entries per layer" if low == high else f"{low} to {high} entries per layer"
        line += f"; the longest cache saw {self.longest} and holds {entries}"
        return f"{line}, the largest takes {formats.size(self.nbytes)}."

    def _met(self) -> str:
        unknown = f"what {self.unreadable_queries} of {self.tokens} queries met cannot be known"
        if self.affected_queries:
            queries = f"{self.affected_queries} of {self.tokens} queries"
            line = f"{queries} and {self.affected_logits} of {self.logits} logits met an eviction"
        elif self.unreadable_queries:
            line = "VACUOUS as far as is known: no query was seen to meet an eviction"
        else:
            line = "VACUOUS: no query met an eviction, so the result is that of the uncompressed model"
        if self.window_queries:
            line += f"; {self.window_queries} met only the model's own sliding window"
        return f"{line}; {unknown}." if self.unreadable_queries else f"{line}."

    def _placed(self) -> str:
        if not self.positions:
            return "Positions could not be compared with the tokens seen."
        if self.wrong_positions:
            return f"{self.wrong_positions} of {self.positions} positions disagree with the tokens seen."
        return f"All {self.positions} positions agree with the tokens seen."


def watch(model: PreTrainedModel, *, require: Requirement | None = None) -> AbstractContextManager[Seen]:
    """Observe the passes of a model and its caches, under any compressor: ``with watch(model) as seen:``.

    No result changes by a bit, and the model is as it was once the context closes. Devices are not synchronised for
    each pass.

    Args:
        model: the model, which may be wrapped. Any code may call it, or its decoder.
        require: ``"evictions"`` raises an error at the end if no query met an eviction.

    Returns:
        A context manager that gives a ``Seen``, which can be read inside and afterwards.

    Raises:
        TypeError: if ``model`` is not a model.
        ValueError: for an unknown ``require``, and at the end if what is required was not seen.
    """
    check_model(model)
    if not hasattr(model, "get_decoder"):
        raise TypeError(f"model must say which of its modules decodes, got {described(model)}: watch the model inside")
    if require is not None and require not in get_args(Requirement):
        raise ValueError(f"require must be 'evictions' or None, got {require!r}: leave it out to require nothing")
    return _watching(Recorder(model), require)


@contextmanager
def _watching(recorder: Recorder, require: Requirement | None) -> Iterator[Seen]:
    seen = Seen(recorder)
    with recorder.hooks():
        yield seen
    if require is not None and seen.vacuous:
        unknown = f" (what {seen.unreadable_queries} of them met cannot be known)" if seen.unreadable_queries else ""
        raise ValueError(
            f"require='evictions', but none of {seen.tokens} queries was seen to meet an eviction{unknown}, so what "
            "was measured is the uncompressed model: feed tokens after the prompt, or use pressgauge.perplexity"
        )
