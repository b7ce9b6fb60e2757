"""Third-party compressors, of any convention, as a sweep measures them."""

import functools
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from pressgauge.arguments import described
from pressgauge.conventions.adapter import Adapter
from pressgauge.conventions.adapters import ADAPTERS, adapter_of, throwaway
from pressgauge.conventions.factories import given, needs, parameters, takes, takes_ratio, version_of
from pressgauge.models.support import of_config
from pressgauge.presses.base import Press
from pressgauge.references import why
from pressgauge.rules import UNPRUNABLE

_SUPPLIED = ("keep_ratio", "model", "dtype", "device", "config", "prompt_length")
"""Arguments that a sweep gives to a factory that names them."""


class Failed(Exception):  # noqa: N818  # a result of the compressor
    """A compressor failed in a measurement, which has no row; the message is one line."""


@dataclass(frozen=True)
class Compressor:
    """A compressor at one keep ratio.

    Attributes:
        label: name in tables.
        reference: ``package.module:name`` of its factory.
        factory: function or class that makes it.
        adapter: adapter of its convention.
        keep_ratio: share of retained entries; None if the factory does not take one.
        options: further arguments of the factory.
        declares: attribute ``declares`` of the factory.
        version: package and version, or digest of the sources.
        sources: digest of its source files.
    """

    label: str
    reference: str
    factory: Callable[..., Any]
    adapter: type[Adapter]
    keep_ratio: float | None
    options: Mapping[str, Any]
    declares: Mapping[str, Any]
    version: str
    sources: str

    @property
    def schedule(self) -> str | None:
        """The declared schedule; None if it declares none."""
        return self.declares.get("schedule")

    @property
    def usual_schedule(self) -> str:
        """The declared schedule, or that of most compressors of its convention."""
        return self.schedule or self.adapter.schedule

    @property
    def prune_after(self) -> int | None:
        """As for a press; None if the factory does not take it."""
        return self.options.get("prune_after")

    @property
    def skipped(self) -> tuple[int, ...] | None:
        """Layers that never evict, as for a press; None if the factory does not take them."""
        return self.options.get("skip_layers")

    def check_dtype(self, dtype: str) -> None:
        """Raise ``ValueError`` if it declares the dtypes that it supports, and this is none of them."""
        declared = self.declares.get("dtypes", ())
        if declared and dtype not in declared:
            raise ValueError(
                f"{self.label} declares dtypes {', '.join(declared)}, got {dtype}: give --dtype {declared[0]}"
            )

    def resolved(self, model: PreTrainedModel) -> "Compressor":
        """The compressor with ``skip_layers`` as indices."""
        if self.options.get("skip_layers") != UNPRUNABLE:
            return self
        return replace(self, options={**self.options, "skip_layers": tuple(of_config(model.config).reasons)})

    def maker(self, model: PreTrainedModel, prompt: int) -> Callable[[], Any]:
        """Function that makes the compressor for a model and a prompt of this many tokens."""
        ratio = 1.0 if self.keep_ratio is None else self.keep_ratio
        known = {
            "model": model,
            "dtype": model.dtype,
            "device": model.device,
            "config": model.config,
            "prompt_length": prompt,
        }
        return functools.partial(self.factory, **{**given(self.factory, ratio, **known), **self.options})

    def asked(self) -> dict[str, Any]:
        """What a user asked for."""
        options = {name: repr(value) for name, value in self.options.items()}
        return {"factory": self.reference, "keep_ratio": self.keep_ratio, "options": options}

    def key(self) -> dict[str, Any]:
        """All that determines it, for the key of a result."""
        return {**self.asked(), "version": self.version, "sources": self.sources}


def compressors(
    label: str, reference: str, factory: Any, own: Mapping[str, Any], ratios: Sequence[float], shared: Mapping[str, Any]
) -> tuple[Compressor, ...] | None:
    """The compressors of a factory, the first of them uncompressed; None if it makes presses.

    The others are one for each further ratio, or a single one if it takes no ratio.

    A first one is made for a tiny model, unless the factory declares the convention of its compressors.

    Args:
        label: name in tables.
        reference: ``package.module:name`` of the factory.
        factory: what has this name.
        own: its own options.
        ratios: keep ratios, the first of which is 1.
        shared: options of all presses, which it is given as far as it names them.

    Raises:
        ValueError: if it is no factory, does not take its options, or makes nothing that can be measured.
    """
    if not callable(factory):
        raise ValueError(
            f"{reference} must be a class or a function that makes a compressor, got {described(factory)}: "
            "name its class"
        )
    check_options(reference, factory, own)
    declares = _declared(reference, factory, own)
    named = parameters(factory)
    options = {name: value for name, value in shared.items() if name in named and declares.get(name, value) is not None}
    options |= own
    if missing := [name for name in needs(factory) if name not in options and name not in _SUPPLIED]:
        raise ValueError(f"{reference} needs {', '.join(missing)}: give {reference}({missing[0]}=...)")
    sources = sources_of(reference.partition(":")[0], getattr(factory, "__module__", None) or "")
    first = Compressor(
        label,
        reference,
        factory,
        ADAPTERS[declares.get("kind", "instance")],
        ratios[-1] if takes_ratio(factory) else None,
        options,
        declares,
        _package(reference, sources),
        sources,
    )
    if "kind" not in declares:
        # Any adapter will do to make it.
        made = _example(first)
        if isinstance(made, Press):
            return None
        try:
            first = replace(first, adapter=adapter_of(made))
        except ValueError as error:
            raise ValueError(f"{label} cannot be measured: {error}") from error
    if first.adapter.opaque:
        raise ValueError(
            f"{label} cannot be measured: {first.adapter.opaque}, and perplexity needs its cache; audit it with "
            "pressgauge audit compressor"
        )
    return tuple(replace(first, keep_ratio=ratio) for ratio in (ratios if takes_ratio(factory) else (1.0, None)))


def check_options(name: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for an option that a factory does not take, or that is not given to it by name."""
    if "keep_ratio" in options:
        raise ValueError(f"{name} is given keep_ratio by --keep-ratios, got keep_ratio={options['keep_ratio']!r}")
    if unknown := next((option for option in options if not takes(factory, option)), None):
        known = [one for one in parameters(factory) if one not in _SUPPLIED]
        raise ValueError(
            f"{name} does not take {unknown}={options[unknown]!r}: it takes {', '.join(known) or 'no options'}"
        )


def _declared(reference: str, factory: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    declares = getattr(factory, "declares", {})
    try:
        found = dict(declares(**options) if callable(declares) else declares)
    except Exception as error:
        raise ValueError(f"declares of {reference} cannot be read: {type(error).__name__}: {error}") from error
    if found.get("kind", "cache") not in ADAPTERS:
        raise ValueError(f"declares kind must be one of {', '.join(ADAPTERS)}, got {found['kind']!r}")
    return found


def _example(first: Compressor) -> Any:
    """A compressor for a tiny model, to see its convention."""
    model = throwaway().float()
    error: BaseException
    try:
        return first.resolved(model).maker(model, 16)()
    except (Exception, SystemExit) as raised:
        error = raised
    raise ValueError(
        f"{first.label} cannot be made: {why(error)}; if it cannot be made for a tiny Llama, declare its kind"
    ) from error


def _package(reference: str, sources: str) -> str:
    version = version_of(reference)
    return f"{reference.partition(':')[0]}, sources {sources[:12]}" if version == "version unknown" else version


def sources_of(*modules: str) -> str:
    """Digest of the loaded source files of the packages of modules; of a module without one, of those in its folder."""
    tops = {name.partition(".")[0] for name in modules}
    files = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in tops and (file := getattr(module, "__file__", None)):
            files[name] = Path(file)
    folders = {path.parent for name, path in files.items() if "." not in name and path.name != "__init__.py"}
    for name, module in list(sys.modules.items()):
        if (file := getattr(module, "__file__", None)) and Path(file).parent in folders:
            files[name] = Path(file)
    state = hashlib.sha256()
    for name, path in sorted(files.items()):
        if path.is_file():
            state.update(name.encode())
            state.update(path.read_bytes())
    return state.hexdigest()
