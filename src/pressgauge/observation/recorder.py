"""Hooks that record the passes of a model, and change nothing."""

import copy
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from pressgauge.models import interface
from pressgauge.observation.readings import UNREADABLE, Reader, Reading, marked, nbytes, noted, scalar
from pressgauge.observation.tally import Record, Tally, Track
from pressgauge.onepass_cache import OnePassCache

_LONGEST_QUEUE = 64
"""Passes that are recorded before they are counted, which synchronises an accelerator."""


class Recorder:
    """Records the passes of a model's decoder.

    Args:
        model: the model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.decoder: Any = interface.decoder_of(model)
        self.hosts = [
            module
            for module in model.modules()
            if isinstance(module, PreTrainedModel)
            and module is not self.decoder
            and any(part is self.decoder for part in module.modules())
        ]
        """Models around the decoder."""
        self.heads = {host for host in self.hosts if host.get_output_embeddings() is not None}
        """Those of them that compute logits."""
        self.reader = Reader(self.decoder.config)
        self.tally = Tally(self.reader.windows)
        self.recording = True
        self._attention = [module for module in self.decoder.modules() if hasattr(module, "layer_idx")]
        self._counts = interface.takes_positions(self.decoder)
        self._tracks: dict[int, tuple[Callable[[], Any], Track]] = {}
        self._queue: list[Record] = []
        self._begun: tuple[Record | None, Any] = None, None
        """The running pass, and the cache that it was given."""
        self._latest: Record | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Recorder":
        """A recorder that does nothing, since the hooks of a copied model are copied."""
        copied = copy.copy(self)
        copied.recording = False
        return copied

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Record while the context is open."""
        handles: list[Any] = []
        try:
            handles += [host.register_forward_hook(self._leave, with_kwargs=True) for host in self.hosts]
            handles.append(self.decoder.register_forward_pre_hook(self._before, with_kwargs=True))
            handles.append(self.decoder.register_forward_hook(self._after, with_kwargs=True, always_call=True))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.counted()
            self.recording = False
            self._tracks.clear()

    def counted(self) -> Tally:
        """The counts up to now."""
        self._count()
        for _, track in list(self._tracks.values()):
            self._measure(track)
        return self.tally

    def _count(self) -> None:
        for record in self._queue:
            self.tally.add(record)
        self._queue.clear()

    def _measure(self, track: Track) -> None:
        self.tally.nbytes = max(self.tally.nbytes, nbytes(track.layers))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook of a host: the queries whose logits it returns, and its mask, from which it made others."""
        record = self._latest
        if record is None:
            return
        given = interface.named(module, args, kwargs) if args else kwargs
        if record.padded and not self.decoder.config.is_encoder_decoder:
            self._read_mask(record, given.get("attention_mask"))
        if record.logits is not None or module not in self.heads:
            return
        logits = getattr(output, "logits", None)
        if isinstance(output, tuple):
            logits = next((part for part in output if isinstance(part, Tensor) and part.dim() == 3), None)
        if isinstance(logits, Tensor) and logits.dim() == 3:
            kept = given.get("logits_to_keep")
            first = max(record.tokens - logits.shape[1], 0)
            record.logits = noted(kept) if isinstance(kept, Tensor) else range(first, record.tokens)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-forward hook of the decoder: what its cache holds."""
        if not self.recording:
            return
        if len(self._queue) >= _LONGEST_QUEUE:
            self._count()
        given = interface.named(module, args, kwargs) if args else kwargs
        record, cache, self._latest = Record(), _cache_of(given), None
        self._begun = record, cache
        record.counted_from = 0
        if cache is None:
            return
        start = record.start = self.reader.read(cache)
        record.counted_from = _position(cache) if given.get("position_ids") is None else None
        record.track = track = self._track(cache)
        if track is not None:
            track.layers = None
            record.viewed = track.mark is not None and _is_view(cache, track)
        # Only kvpress masks keys that it leaves in the cache.
        record.masked_heads = "kvpress" in sys.modules and start.most > 0 and any(map(_masks_heads, self._attention))

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook of the decoder: what it was fed, and what its cache holds now."""
        (record, begun), self._begun = self._begun, (None, None)
        if record is None:
            return
        if output is None:
            if record.track is not None:
                record.failed, record.track.latest = True, None
                self._queue.append(record)
            return
        given = interface.named(module, args, kwargs) if args else kwargs
        inputs = given.get("input_ids")
        if inputs is None:
            inputs = given.get("inputs_embeds")
        record.rows, record.tokens = (output[0] if inputs is None else inputs).shape[:2]
        cache = _cache_of(given)
        if cache is None or isinstance(cache, tuple):
            # Made by the pass; instead of a tuple, it makes another one.
            cache = _cache_of(output)
        if cache is not None:
            self._read_cache(record, cache, begun)
        self._read_positions(record, given)
        mask = given.get("attention_mask")
        if mask is not None and not self._read_mask(record, mask):
            record.padded = True
        self._latest = record
        self._queue.append(record)

    def _read_cache(self, record: Record, cache: Any, begun: Any) -> None:
        """The cache that the layers used, after a pass that had begun with ``begun``."""
        end = record.end = self.reader.read(cache)
        layers = getattr(cache, "layers", None)
        if record.tokens > 1 or layers is None:
            record.nbytes = nbytes(cache)
        if isinstance(cache, OnePassCache):
            record.affected_from = cache.affected_from(record.tokens)
            record.end = Reading(cache.held(self.reader.windows))
            return
        if cache is not begun and not isinstance(begun, tuple):
            # Made by the pass, or put in place of what was given by a later hook.
            record.track = self._track(cache)
            record.start = None if record.track is None else record.track.latest
            if record.start is not None:
                record.counted_from = None
            elif max(end.most, end.columns or 0) > record.tokens:
                record.start = Reading([UNREADABLE])
        known, track = record.track, record.track or Track()
        record.track = track
        if known is None or isinstance(cache, tuple):
            self._follow(cache, track)
        track.latest, track.layers = end, layers
        # Whoever gives positions tells a crop by them.
        track.mark = marked(cache) if record.counted_from is not None else None

    def _read_mask(self, record: Record, mask: Any) -> bool:
        """Read a mask, if it is 2-D and fits the pass; whether it was read."""
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            return False
        rows, columns = mask.shape
        if rows != record.rows or columns < record.tokens:
            return False
        record.mask_columns, record.padded = columns, False
        record.mask = noted(mask[:, columns - record.tokens :])
        track = record.track
        # The padding of a single row is known from the passes before, that of several may have changed places.
        if columns > record.tokens and (rows > 1 or track is None or not track.masked):
            record.mask_totals = noted((mask != 0).sum(dim=1))
        if track is not None:
            track.masked = True
        return True

    def _read_positions(self, record: Record, given: dict[str, Any]) -> None:
        positions, first = given.get("position_ids"), given.get("cache_position")
        if not self._counts:
            record.counted_from = None
        elif isinstance(positions, Tensor):
            record.counted_from = None
            if positions.dim() == 2 and positions.shape[1] == record.tokens:
                record.positions = noted(positions)
        elif isinstance(first, Tensor):
            record.counted_from = scalar(first[0])

    def _track(self, cache: Any) -> Track | None:
        """What is known of a cache, if it was met before."""
        key = _key(cache)
        found = self._tracks.get(id(key))
        return found[1] if found is not None and found[0]() is key else None

    def _follow(self, cache: Any, track: Track) -> None:
        """Find ``track`` by this cache from now on, for as long as it lives."""
        key = _key(cache)
        number = id(key)

        def died(_: Any) -> None:
            self._tracks.pop(number, None)
            self._measure(track)
            track.layers = None

        try:
            reference: Callable[[], Any] = weakref.ref(key, died)
        except TypeError:
            reference = lambda: key  # noqa: E731
        self._tracks[number] = reference, track


def _cache_of(values: Any) -> Any:
    """The cache in the arguments or the output of a forward call; None if there is none."""
    if isinstance(values, tuple):
        return next((value for value in values if isinstance(value, Cache)), None)
    for name, value in values.items():
        if value is not None and (name in interface.CACHE_NAMES or isinstance(value, Cache)):
            return value
    return None


def _key(cache: Any) -> Any:
    """The object that tells a cache from others: for a tuple of layers, which a pass replaces, its first keys."""
    while isinstance(cache, tuple | list) and cache:
        cache = cache[0]
    return cache


def _position(cache: Any) -> Any:
    """The position that a model counts from, which is what its cache says; None if unknown."""
    try:
        return scalar(cache.get_seq_length())
    except Exception:  # a cache of unknown layout may raise anything, and an observer must not
        return None


def _is_view(cache: Any, track: Track) -> bool:
    """Whether a cache's keys are now a shorter leading view of what they were after its last pass."""
    now, then = marked(cache), track.mark
    return now is not None and then is not None and now[:2] == then[:2] and now[2] < then[2]


def _masks_heads(attention: nn.Module) -> bool:
    """Whether kvpress masks keys of a layer that it leaves in the cache, as presses with a budget per head do."""
    indices = vars(attention).get("masked_key_indices")
    return indices is not None and len(indices) > 0 and len(indices[0]) > 0
