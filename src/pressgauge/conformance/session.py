"""Sessions: run a model with any compressor, pass by pass, and record its cache."""

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel

from pressgauge.conformance.outcomes import (
    DECLINES,
    Departure,
    not_applicable,
    refusals,
)
from pressgauge.conformance.precision import rounded
from pressgauge.conformance.reading import Entries, entries_of, layers_of
from pressgauge.conformance.scope import require_keys_first, require_within_windows
from pressgauge.conformance.subjects import Subject
from pressgauge.conformance.versions import CACHE, using
from pressgauge.models import interface
from pressgauge.models.windows import windows


@dataclass
class Pass:
    """One forward call."""

    start: int
    """Tokens seen before the pass."""
    length: int
    logits: Tensor
    """``[B, q, V]``, on the CPU like all recorded tensors."""
    arrived: dict[int, Entries]
    """Entries passed to the cache, per layer."""
    held: list[Entries]
    """Entries of each layer after the pass."""
    positions: Tensor | None
    """Positions used by the rotary embedding, ``[B, q]``; None if unknown."""
    returned: dict[int, Entries] = field(default_factory=dict)
    """Entries that ``update`` returned, per layer."""

    @property
    def end(self) -> int:
        """Tokens seen after the pass."""
        return self.start + self.length


def provided_for(subject: Subject, what: str) -> None:
    """Skip a test of a feature that the subject's convention does not provide."""
    if reason := subject.adapter.beyond.get(what):
        not_applicable(reason)


class Session:
    """One batch of sequences run through a model with a compressor. Use as a context manager.

    Args:
        subject: subject of the compressor.
        compressor: result of the subject's factory.
        model: the model.
    """

    def __init__(self, subject: Subject, compressor: Any, model: PreTrainedModel) -> None:
        require_keys_first(model)
        self._windows = windows(model.config)
        model = subject.model_of(model)
        # A function over the cache is applied to the model that runs; others look at one in the declared dtype.
        self.adapter = subject.adapter(compressor, model if subject.adapter.between_passes else subject.shown(model))
        self._stored = subject.entries_dtype
        if self.adapter.opaque:
            not_applicable(self.adapter.opaque)
        self.declares = subject.declares
        self.supplies_positions = self.adapter.supplies_positions or subject.declares.positions == "caller"
        self.model: Any = model
        self.passes: list[Pass] = []
        self.cache: Any = None
        self._arrived: dict[int, list[Entries]] = {}
        self._returned: dict[int, Entries] = {}
        self._devices: dict[int, torch.device] = {}
        self._positions: Tensor | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "Session":
        self.begin()
        with refusals(*DECLINES, TypeError, AttributeError):
            self.resume()
        return self

    def begin(self) -> None:
        """Start a further sequence in the same context, with a new cache."""
        with refusals(*DECLINES, TypeError, AttributeError):
            self.cache = self.adapter.start()
        self.passes = []
        self._arrived.clear()
        self._devices.clear()
        self._watch_cache()

    def resume(self) -> None:
        """Apply the compressor to the model, initially or after ``pause``."""
        with ExitStack() as stack:
            stack.enter_context(self.adapter.at_work())
            stack.enter_context(self._watched_positions())
            self._stack = stack.pop_all()

    def pause(self) -> None:
        """Release the model for another session, and keep the cache."""
        self._stack.close()

    def __exit__(self, *exception: Any) -> None:
        # Pass the exception on to the compressor, as without a session.
        self._stack.__exit__(*exception)

    def _watch_cache(self) -> None:
        cache = self.cache

        def recording(keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> Any:
            dtypes = keys.dtype, values.dtype
            keys, values = rounded(keys, self._stored), rounded(values, self._stored)
            given = keys.clone(), values.clone()
            self._arrived.setdefault(layer, []).append((given[0].cpu(), given[1].cpu()))
            self._devices[layer] = keys.device
            # Look up the class now: a press that adopts a cache changes its class.
            result = type(cache).update(cache, keys, values, layer, *args, **kwargs)
            if isinstance(result, tuple) and all(isinstance(each, Tensor) for each in result[:2]):
                self._returned[layer] = (result[0].cpu().clone(), result[1].cpu().clone())
            for name, before, after in zip(("keys", "values"), given, (keys, values), strict=True):
                if not _same(before, after):
                    raise Departure(f"update wrote to the {name} that were passed to layer {layer}")
            return self._widened(result, given, dtypes, layer)

        cache.update = recording

    def _widened(self, result: Any, given: Entries, dtypes: tuple[torch.dtype, ...], layer: int) -> Any:
        """What ``update`` returned, in the model's dtypes if the entries were passed in another."""
        if self._stored is None:
            return result
        for name, mine, own in zip(("keys", "values"), result, given, strict=True):
            if mine.dtype != own.dtype:
                raise Departure(
                    f"update was passed {name} of layer {layer} in {own.dtype} and returned them in {mine.dtype}, with "
                    "which attention of a model in the first dtype fails"
                )
        return tuple(tensor.to(dtype) for tensor, dtype in zip(result, dtypes, strict=True))

    @contextmanager
    def _watched_positions(self) -> Iterator[None]:
        """Record the positions of the rotary embedding, if the model has a single module for it."""
        rotary = getattr(self.model.get_decoder(), "rotary_emb", None)
        if rotary is None:
            yield
            return
        names = list(inspect.signature(rotary.forward).parameters)

        def note(module: Any, args: Any, kwargs: Any) -> None:
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            positions = given.get("position_ids")
            self._positions = positions.cpu().clone() if isinstance(positions, Tensor) else None

        handle = rotary.register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @property
    def seen(self) -> int:
        """Tokens fed so far."""
        return self.passes[-1].end if self.passes else 0

    def feed(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Feed one pass.

        Args:
            ids: ``[B, q]``, on any device.
            mask: ``[B, seen + q]``, for padded rows.

        Returns:
            Logits ``[B, q, V]`` on the CPU.

        Raises:
            Refused: if the subject declines, with one of ``DECLINES``.
            Departure: if the cache was never updated, or the compressor's result is invalid.
        """
        given: dict[str, Any] = {}
        end = self.seen + ids.shape[1]
        require_within_windows(self._windows, end)
        ids = ids.to(self.model.device)
        if mask is not None:
            mask = mask.to(self.model.device)
            given = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, self.seen : end]}
        elif self.supplies_positions:
            given = {"position_ids": torch.arange(self.seen, end, device=ids.device).expand(ids.shape)}
        self._positions = None
        with torch.no_grad(), refusals(*DECLINES):
            logits: Tensor = self.model(ids, **using(self.cache), use_cache=True, **given).logits.cpu()
        if not self._arrived:
            raise Departure(
                f"the model was fed {end} tokens and never called update on the cache passed as {CACHE!r} "
                f"(transformers {transformers.__version__})"
            )
        self._finish(logits, ids.shape[1])
        return logits

    def generate(self, ids: Tensor, new_tokens: int) -> Tensor:
        """Greedy ``model.generate`` with the new cache, recording every pass. Not for functions.

        Args:
            ids: ``[B, T]``.
            new_tokens: number of tokens to generate.

        Returns:
            ``[B, T + new]`` on the CPU.

        Raises:
            Refused: if the subject declines.
        """

        def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            given = kwargs.get("input_ids")
            length = given.shape[1] if given is not None else output.logits.shape[1]
            self._finish(output.logits.cpu(), length)

        require_within_windows(self._windows, ids.shape[1] + new_tokens)
        ids = ids.to(self.model.device)
        handle = self.model.register_forward_hook(note, with_kwargs=True)
        try:
            with refusals(*DECLINES):
                tokens: Tensor = self.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    **using(self.cache),
                    max_new_tokens=new_tokens,
                    do_sample=False,
                    eos_token_id=None,
                )
                return tokens.cpu()
        finally:
            handle.remove()

    def _finish(self, logits: Tensor, length: int) -> None:
        """Call the compressor, if it is called between passes, and record the pass."""
        self._between_passes()
        arrived = {
            layer: (torch.cat([k for k, _ in parts], dim=2), torch.cat([v for _, v in parts], dim=2))
            for layer, parts in sorted(self._arrived.items())
        }
        returned = dict(self._returned)
        self._arrived.clear()
        self._returned.clear()
        self.passes.append(Pass(self.seen, length, logits, arrived, self.held(), self._positions, returned))

    def _between_passes(self) -> None:
        """Call the compressor, if it is called between passes, and the declared function."""
        if self.adapter.between_passes:
            self._compress()
        if self.declares.after_pass:
            with torch.no_grad(), refusals(*DECLINES):
                self.declares.after_pass(self.cache)

    def _compress(self) -> None:
        stored = [layer for layer in self.cache.layers if interface.caches_keys(layer)]
        layers = [(layer.keys, layer.values) for layer in stored]
        before = [(keys.clone(), values.clone()) for keys, values in layers]
        with refusals(*DECLINES):
            result = self.adapter.compress(list(layers))
        if not isinstance(result, list | tuple) or len(result) != len(layers):
            raise Departure(f"compress must return {len(layers)} pairs of keys and values, got {result!r}")
        for index, (pair, own, old) in enumerate(zip(result, layers, before, strict=True)):
            keys, values = pair
            if keys.dim() != 4 or keys.shape[:3] != values.shape[:3] or keys.shape[:2] != own[0].shape[:2]:
                raise Departure(
                    f"compress returned keys {list(keys.shape)} and values {list(values.shape)} for layer {index} of "
                    f"{list(own[0].shape)}; only the number of entries may change, and by the same for both"
                )
            for name, given, kept, returned in zip(("keys", "values"), own, old, (keys, values), strict=True):
                if returned.dtype != given.dtype or returned.device != given.device:
                    raise Departure(
                        f"compress was passed the {name} of layer {index} in {given.dtype} on {given.device} and "
                        f"returned them in {returned.dtype} on {returned.device}"
                    )
                if not _same(given, kept):
                    raise Departure(f"compress wrote to the {name} of layer {index} that it was passed")
                shares = returned.untyped_storage().data_ptr() == given.untyped_storage().data_ptr()
                if returned.shape[2] < given.shape[2] and shares and returned.numel():
                    raise Departure(
                        f"the retained {name} of layer {index} are a view of all {given.shape[2]} entries, so the "
                        "evicted ones cannot be freed"
                    )
            stored[index].keys, stored[index].values = keys, values

    def held(self) -> list[Entries]:
        """Current entries of each layer, as readable from the cache, copied to the CPU.

        Raises:
            Departure: if entries are on another device than those passed in.
            Unreadable: if a layer that was passed entries cannot be read.
        """
        layers = []
        # Layers without keys, such as those of linear attention, are never passed any.
        for index in range(max(self._devices, default=-1) + 1):
            if index not in self._devices:
                break
            keys, values = entries_of(self.cache, index, self.declares.read)
            there = self._devices[index]
            if keys.numel() and keys.device != there:
                raise Departure(f"layer {index} was passed entries on {there} and holds them on {keys.device}")
            layers.append((keys.cpu().clone(), values.cpu().clone()))
        return layers

    def storage(self, layer: int) -> int:
        """Bytes of key and value storage that a layer keeps alive."""
        own = layers_of(self.cache).get(layer)
        values = [part for value in getattr(own, "__dict__", {}).values() for part in _parts(value)]
        # Wrapper subclasses, such as quantised tensors, do not expose their storage.
        tensors = [
            tensor
            for tensor in values
            if isinstance(tensor, Tensor)
            and not is_traceable_wrapper_subclass(tensor)
            and tensor.dim() == 4
            and tensor.is_floating_point()
        ]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    def fork(self) -> "Session":
        """Independent session that continues from here with a copy of the cache."""
        other = copy.copy(self)
        own_update = self.cache.__dict__.pop("update")
        try:
            other.cache = copy.deepcopy(self.cache)
        finally:
            self.cache.update = own_update
        other.passes = list(self.passes)
        other._arrived, other._returned = {}, {}
        other._watch_cache()
        return other


def _parts(value: Any) -> Iterable[Any]:
    """Elements of a container, or the value itself."""
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else (value,)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether tensors are equal, with NaN equal to NaN."""
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


@dataclass
class Trace:
    """Record of a subject's run on a text."""

    subject: Subject
    options: dict[str, Any]
    model: PreTrainedModel
    ids: Tensor
    passes: list[Pass] = field(default_factory=list)
    storage: list[int] = field(default_factory=list)
    """Bytes that each layer keeps alive at the end."""
    queries: Tensor | None = None
    """``[B, H, T, D]``, if known."""
    audit: Any = None
    """Its audit, once there is one."""

    @property
    def lengths(self) -> list[int]:
        """Lengths of the passes."""
        return [one.length for one in self.passes]

    @property
    def logits(self) -> Tensor:
        """``[B, T, V]``."""
        return torch.cat([one.logits for one in self.passes], dim=1)

    def arrived(self, layer: int, passes: int | None = None) -> Entries:
        """All entries passed to a layer in the first ``passes`` passes; in all by default."""
        parts = [one.arrived[layer] for one in self.passes[:passes]]
        return torch.cat([keys for keys, _ in parts], dim=2), torch.cat([values for _, values in parts], dim=2)

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.passes[0].arrived)


def run(
    subject: Subject,
    model: PreTrainedModel,
    ids: Tensor,
    lengths: list[int],
    mask: Tensor | None = None,
    compressor: Any = None,
    **options: Any,
) -> Trace:
    """Feed a text to a model in passes, with a compressor of the subject.

    Args:
        subject: the subject.
        model: the model.
        ids: ``[B, T]``.
        lengths: lengths of the passes, which sum to T.
        mask: ``[B, T]``, for padded rows.
        compressor: an existing compressor; created from ``options`` by default.
        options: options of the compressor.

    Raises:
        Refused: if the subject declines.
        Departure: if the cache was never updated, or the compressor's result is invalid.
    """
    options = {"keep_ratio": 1, **options}
    if compressor is None:
        compressor = subject(model=model, prompt_length=lengths[0], **options)
    result = Trace(subject, options, model, ids)
    with Session(subject, compressor, model) as session:
        result.model = session.model
        for length in lengths:
            end = session.seen + length
            session.feed(ids[:, session.seen : end], None if mask is None else mask[:, :end])
        result.storage = [session.storage(layer) for layer in range(len(session.held()))]
    result.passes = session.passes
    return result
