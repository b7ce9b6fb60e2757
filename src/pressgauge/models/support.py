"""Layers of a model that presses support, and reasons why they do not support the others."""

import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from transformers import PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from pressgauge.models import heads, interface
from pressgauge.models.windows import owners, windows
from pressgauge.rules import UNPRUNABLE, Budget, Window

P = TypeVar("P", bound=Budget)

_OUTSIDE = "does not go through transformers' attention interface"
_STEPWISE = "measure it without a press (press=None, method='stepwise' or 'plain')"
_ALONE = f"no press supports this model: {_STEPWISE}"
_BY_CACHE = (
    "a press that needs no queries works by method='stepwise' and press.cache(model.config), and no press by "
    "press=None with method='stepwise' or 'plain'"
)


@dataclass(frozen=True)
class Support:
    """Support of a model for presses.

    Attributes:
        name: name of the model, for messages.
        layers: number of layers.
        whole: why presses do not support the model, whichever layers are skipped; None if they may.
        reasons: why presses cannot evict from a layer, by index.
        selecting: whether some layers index, compress or select keys.
        windows: windows of the layers that have one, by index.
        owners: for each layer that reads the keys and values of another, the layer that it reads.
        split: how processes share the KV heads; None if they do not.
        by_cache: whether a press may serve the model by a plain cache, and cannot be attached to it.
    """

    name: str
    layers: int
    whole: str | None
    reasons: Mapping[int, str]
    selecting: bool = False
    windows: Mapping[int, Window] = field(default_factory=dict)
    owners: Mapping[int, int] = field(default_factory=dict)
    split: heads.Split | None = None
    by_cache: bool = False

    def resolve(self, press: P) -> P:
        """The press with ``skip_layers`` as indices, all within the model, and the heads of this process.

        Raises:
            ValueError: if the press does not support the model; the message lists all reasons.
        """
        if self.whole is not None:
            raise ValueError(f"{self.name} ({interface.VERSION}) {self.whole}")
        if press.skip_layers == UNPRUNABLE:
            if len(away := self._together(self.reasons)) == self.layers:
                raise self.refusal(self.reasons)
            return self._shared(replace(press, skip_layers=away))
        if missing := [layer for layer in press.skip_layers if layer >= self.layers]:
            raise ValueError(
                f"skip_layers names layer {missing[0]}, but the model has {self.layers} layers, 0 to {self.layers - 1}"
            )
        if set(self.reasons) - set(press.skip_layers):
            raise self.refusal(self.reasons, press.skip_layers)
        for layer, owner in self.owners.items():
            if layer in press.skip_layers and owner not in press.skip_layers:
                raise ValueError(
                    f"skip_layers names layer {layer}, which reads the keys and values of layer {owner}, so the two "
                    f"are compressed together: name layer {owner}, too, or neither"
                )
        return self._shared(press)

    def _shared(self, press: P) -> P:
        """The press with the heads of this process, which those of this package take account of."""
        if self.split is None:
            return press
        if not type(press).__module__.startswith("pressgauge."):
            raise ValueError(
                f"{self.name} ({interface.VERSION}) is shared by {self.split.count} processes, and whether "
                f"{type(press).__name__} scores each head on its own cannot be told: measure it on one device"
            )
        return self.split.given_to(press)

    def _together(self, layers: Iterable[int]) -> tuple[int, ...]:
        """Layers with all those that share keys and values with them."""
        sharing = {self.owners.get(layer, layer) for layer in layers}
        return tuple(layer for layer in range(self.layers) if self.owners.get(layer, layer) in sharing)

    def owner(self, layer: int) -> int:
        """The layer whose keys and values a layer reads: itself, unless they are shared."""
        return self.owners.get(layer, layer)

    def readers(self, owner: int) -> list[int]:
        """The layers that read the keys and values of ``owner``, itself first."""
        return [owner, *(layer for layer, own in self.owners.items() if own == owner)]

    def evicting(self, skipped: Iterable[int]) -> list[int]:
        """The layers that attend to entries under a press: those that evict, and those that read their entries."""
        return [layer for layer in range(self.layers) if self.owners.get(layer, layer) not in skipped]

    def refusal(self, reasons: Mapping[int, str], skipped: Iterable[int] = ()) -> ValueError:
        """The error for unsupported layers that are not skipped, with all reasons and the way out.

        Args:
            reasons: by index, why presses cannot evict from a layer.
            skipped: layers already skipped.
        """
        alike: dict[str, list[int]] = {}
        for layer, reason in sorted(reasons.items()):
            if layer not in skipped:
                alike.setdefault(reason, []).append(layer)
        grouped = "; ".join(f"{_layers(layers)} ({reason})" for reason, layers in alike.items())
        away = self._together((*reasons, *skipped))
        left = [layer for layer in range(self.layers) if layer not in away]
        start = f"{self.name} ({interface.VERSION}): a press does not support {grouped}"
        if not left:
            return ValueError(f"{start}; that leaves no layer to compress, so {_ALONE}")
        short = f" or skip_layers={UNPRUNABLE!r}" if set(reasons) <= set(self.reasons) else ""
        return ValueError(f"{start}; pass skip_layers={away}{short}, which leaves {_layers(left)} to compress")

    def check_index(self, index: int) -> None:
        """Raise ``ValueError`` if an attention module's layer index is outside the model."""
        if not 0 <= index < self.layers:
            raise ValueError(
                f"{self.name} ({interface.VERSION}) attends by modules whose layer_idx is {index}, outside 0 to "
                f"{self.layers - 1}, and which layer they serve cannot be told: {_ALONE}"
            )

    def check_added(self, before: int, after: int) -> None:
        """Raise ``ValueError`` if a pass changed the number of layers of its cache."""
        if before != after:
            raise ValueError(
                f"{self.name} ({interface.VERSION}) was given a cache of {before} layers and made it one of {after}, "
                f"and which of its layers they serve cannot be told: {_ALONE}"
            )


def _layers(layers: Iterable[int]) -> str:
    """``layer 2``, or ``layers 0-3, 5``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    spans = ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"layer {spans}" if spans.isdigit() else f"layers {spans}"


_ORDER_FREE = (
    "big_bird",
    "codegen",
    "falcon",
    "gpt_neo",
    "gpt_neox_japanese",
    "gptj",
    "megatron-bert",
    "mvp",
    "rembert",
    "roformer",
    "trocr",
    "xglm",
)
"""Architectures whose own attention code is invariant to entry order (`nox -s zoo`)."""

_APART = {
    "git": _OUTSIDE,
    "jetmoe": "attends by query heads that read KV heads in turns, which a press takes for neighbours",
}
"""Other architectures to which no press can be attached, and which a plain cache serves."""

_OWN_WAYS = {
    "diffllama": "joins the values of several heads that lie in one slot",
    "dory": "adds layers to the cache that it is given",
    "moshi": "attends beyond the window that its cache keeps",
    "recurrent_gemma": "keeps recurrent states in its modules, from one sequence to the next",
    "doge": "makes masks of its own from all values that lie in the cache",
}
"""Architectures that handle entries in ways that a plain cache cannot detect."""


def _slots(config: Any, kind: Any) -> str | None:
    """Why stock attention over the slots of a plain cache would be wrong; None if it is right."""
    if getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt"):
        return "adds ALiBi biases by the slot of an entry, not its position"
    own = None if kind is None else vars(sys.modules[kind.__module__]).get("eager_attention_forward")
    if own is not None and "position_bias" in inspect.signature(inspect.unwrap(own)).parameters:
        return "adds biases by the slot of an entry, not its position"
    if config.model_type in _OWN_WAYS:
        return _OWN_WAYS[config.model_type]
    if kind is None or interface.goes_through_interface(kind):
        return None
    if config.model_type not in _ORDER_FREE:
        return (
            "is not known to attend through transformers' interface, and may take the slot of an entry for its position"
        )
    if not hasattr(sys.modules[kind.__module__], "create_causal_mask"):
        return "makes masks of as many columns as it has seen tokens, whatever its cache holds"
    return None


def _attending(config: PretrainedConfig) -> Any:
    """The causal model class whose layers attend, of the text model of a wrapper; None if it is not transformers'."""
    return interface.model_class(config.get_text_config(decoder=True)) or interface.model_class(config)


def apart(config: PretrainedConfig) -> str | None:
    """Why no press can be attached to a model of transformers that a plain cache may serve; None if one can."""
    kind = _attending(config)
    if kind is not None and not interface.goes_through_interface(kind):
        return _OUTSIDE
    return _APART.get(config.get_text_config(decoder=True).model_type)


def of_config(config: PretrainedConfig, classes: Sequence[Any] | None = None) -> Support:
    """Support of a model, as far as its configuration tells.

    Args:
        config: the configuration.
        classes: layers of the model's own cache; created from ``config`` by default.
    """
    text: Any = config.get_text_config(decoder=True)
    kind = interface.model_class(config)
    name = kind.__name__ if kind is not None else type(config).__name__
    count = text.num_hidden_layers
    classes = interface.layer_classes(config) if classes is None else classes
    whole = None
    if config.is_encoder_decoder:
        whole = f"is an encoder-decoder, whose cache a press cannot serve: {_ALONE}"
    elif kind is not None and interface.cache_name(kind) is None:
        whole = f"keeps no key-value cache, so there is nothing to compress: {interface.PLAIN}"
    elif not any(map(interface.caches_keys, classes)):
        whole = f"has no layer that caches keys, so there is nothing to compress: {_STEPWISE}"
    elif kind is not None and not interface.takes_dynamic_cache(kind):
        whole = f"decodes with a cache of its own: {interface.PLAIN}"
    elif slots := _slots(text, _attending(config)):
        whole = f"{slots}: {_STEPWISE}"
    elif unsplit := heads.unsplit(config):
        whole = f"{unsplit}: {_STEPWISE}"
    reasons = {}
    types = getattr(text, "layer_types", None) or [None] * count
    # GPT-Neo's local attention counts slots, not positions.
    local = getattr(text, "attention_layers", None) or [None] * count
    windowed, reading = windows(config, classes), owners(config)
    for index in range(count):
        if index in reading:
            # It follows the layer that it reads.
            continue
        if index >= len(classes) or not interface.caches_keys(classes[index]):
            reasons[index] = f"{types[index] or 'no attention'}, which caches no keys".replace("_", " ")
        elif local[index] == "local":
            reasons[index] = f"local attention of {text.window_size} slots, whatever their positions"
        elif (
            type(classes[index]) is not DynamicLayer
            and index not in windowed
            and not interface.keeps_both(classes[index])
        ):
            window = getattr(text, "sliding_window", None) or getattr(text, "attention_chunk_size", None)
            layer_type = (types[index] or "sliding_attention").replace("_", " ")
            reasons[index] = layer_type + (f" of {window}" if window else "")
    by_cache = whole is None and apart(config) is not None
    if by_cache and 0 < len(reasons) < count:
        whole = f"has one mask for all layers, and some have {next(iter(reasons.values()))}: {_STEPWISE}"
    selecting, split = any(map(interface.selects_keys, classes)), None if whole else heads.split_of(config)
    return Support(name, count, whole, reasons, selecting, windowed, reading, split, by_cache and whole is None)


def refuse_outside(model: PreTrainedModel) -> None:
    """Raise ``ValueError`` if a model bypasses transformers' attention interface."""
    if not interface.goes_through_interface(type(interface.decoder_of(model))):
        raise ValueError(f"{type(model).__name__} ({interface.VERSION}) {_OUTSIDE}: {_STEPWISE}")


def of_model(model: PreTrainedModel) -> Support:
    """Support of a model for attached presses."""
    support = of_config(model.config)
    whole = support.whole
    if support.by_cache:
        whole = f"{apart(model.config)}: {_BY_CACHE}"
    elif whole is None and not interface.goes_through_interface(type(interface.decoder_of(model))):
        whole = f"{_OUTSIDE}: {_STEPWISE}"
    return replace(support, name=type(model).__name__, whole=whole)
