"""Samples of a cell that ranks measured, put together; and their form in a journal."""

import base64
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from pressgauge.bench.answering import Answers
from pressgauge.bench.observed import Decoded, Observed
from pressgauge.bench.row import Settings, Source
from pressgauge.bench.task_row import TaskInput, TaskSource
from pressgauge.uncompressed import Perplexity

Result = Perplexity | Observed | Answers
"""What a cell measures."""
_KINDS: dict[str, Callable[..., Result]] = {kind.__name__: kind for kind in (Perplexity, Observed, Answers)}


@dataclass(frozen=True)
class Part:
    """The result of one sample of a cell.

    Attributes:
        press: name of the press.
        settings: of the press.
        source: what was measured and where; of a task, also what the model was given.
        sample: index of the sample.
        result: its result.
        uncompressed: the uncompressed run on the same sample of a text.
        decoded: ``[1, scored]``: its NLL, decoded stepwise, if a third-party compressor is compared with it.
    """

    press: str
    settings: Settings
    source: Source | tuple[TaskSource, TaskInput]
    sample: int
    result: Result
    uncompressed: Perplexity | None = None
    decoded: Tensor | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the fields of the row that they have, and the results."""
        source = (self.source,) if isinstance(self.source, Source) else self.source
        own: dict[str, Any] = {"press": self.press}
        for part in (*source, self.settings):
            own |= asdict(part)
        own |= {"sample": self.sample, "result": _packed(self.result)}
        own["uncompressed"] = None if self.uncompressed is None else _packed(self.uncompressed)
        own["decoded"] = None if self.decoded is None else _text({"nll": self.decoded})
        return own

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Part":
        """The part from the JSON of its ``as_dict``."""
        made = [_made(kind, data) for kind in ((TaskSource, TaskInput) if "task" in data else (Source,))]
        base = data["uncompressed"] and _unpacked(data["uncompressed"])
        decoded = data["decoded"] and _tensors(data["decoded"])["nll"]
        return cls(
            data["press"],
            _made(Settings, data),
            made[0] if len(made) == 1 else (made[0], made[1]),
            data["sample"],
            _unpacked(data["result"]),
            base,
            decoded,
        )


def part_key(key: str, sample: int) -> str:
    """Key of a sample's result in a journal, from that of the cell."""
    return f"{key}/{sample}"


def _made(kind: Any, data: Mapping[str, Any]) -> Any:
    """A dataclass of numbers, names and tuples from JSON."""
    values = {field.name: data[field.name] for field in fields(kind)}
    return kind(**{name: tuple(at) if isinstance(at, list) else at for name, at in values.items()})


def _packed(result: Result) -> dict[str, Any]:
    plain, tensors = {}, {}
    for field in fields(result):
        value = getattr(result, field.name)
        if isinstance(value, Tensor):
            tensors[field.name] = value
        elif isinstance(value, tuple) and value and isinstance(value[0], Tensor):
            tensors |= {f"{field.name}.{place}": tensor for place, tensor in enumerate(value)}
        else:
            plain[field.name] = value
    return {"kind": type(result).__name__, "plain": plain, "tensors": _text(tensors)}


def _unpacked(data: Mapping[str, Any]) -> Any:
    values = {name: tuple(at) if isinstance(at, list) else at for name, at in data["plain"].items()}
    for name, tensor in sorted(_tensors(data["tensors"]).items(), key=lambda item: _place(item[0])):
        field, _, place = name.partition(".")
        values[field] = (*values.get(field, ()), tensor) if place else tensor
    return _KINDS[data["kind"]](**values)


def _place(name: str) -> tuple[str, int]:
    field, _, place = name.partition(".")
    return field, int(place or 0)


def _text(tensors: Mapping[str, Tensor]) -> str:
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    return base64.b64encode(zlib.compress(content, 1)).decode()


def _tensors(text: str) -> dict[str, Tensor]:
    return load(zlib.decompress(base64.b64decode(text)))


def joined(results: Sequence[Perplexity]) -> Perplexity:
    """The result on several samples of a text, in their order, from that on each."""
    first = results[0]
    distances: dict[str, Any] = {}
    for name in ("kl", "agrees"):
        given = [own for result in results if (own := getattr(result, name)) is not None]
        distances[name] = torch.cat(given) if given else None
    return Perplexity(
        **{name: torch.cat([getattr(one, name) for one in results]) for name in ("nll", "scored", "hits", "affected")},
        evictions=sum(result.evictions for result in results),
        held=tuple(map(max, zip(*(result.held for result in results), strict=True))),
        kv_bytes=sum(result.kv_bytes for result in results),
        compressing=first.compressing,
        evicted_at=tuple(torch.cat(tables) for tables in zip(*(one.evicted_at for one in results), strict=True)),
        **distances,
    )


_COUNTS = ("answer_tokens", "affected_tokens", "evictions", "kv_bytes")
"""Fields of answers that are sums over samples."""


def joined_answers(results: Sequence[Answers]) -> Answers:
    """The answers to several prompts of a task, in their order, from those to each."""
    return Answers(
        tuple(text for result in results for text in result.texts),
        tuple(recall for result in results for recall in result.recalls),
        **{name: sum(getattr(result, name) for result in results) for name in _COUNTS},
        compressing=results[0].compressing,
    )


def joined_parts(parts: Sequence[Part]) -> tuple[Result, Perplexity | None]:
    """The result of a cell and its uncompressed run, from parts of all its samples in their order."""
    results: list[Any] = [part.result for part in parts]
    if isinstance(results[0], Answers):
        return joined_answers(results), None
    bases = [part.uncompressed for part in parts if part.uncompressed is not None]
    base = joined(bases)
    if isinstance(results[0], Perplexity):
        return joined(results), base
    source, decoded = parts[0].source, [part.decoded for part in parts if part.decoded is not None]
    assert isinstance(source, Source)
    dtype = getattr(torch, source.dtype)
    return Observed.joined(results, Decoded.between(decoded, [one.nll for one in bases], dtype)), base
