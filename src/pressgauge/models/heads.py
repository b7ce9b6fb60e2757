"""KV heads of a model that processes share: tensor parallelism of transformers."""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PretrainedConfig

from pressgauge.models import interface
from pressgauge.rules import Budget

P = TypeVar("P", bound=Budget)
S = TypeVar("S")

_SPLIT = "_split"
"""Attribute of a press that scores some of the heads of each layer; no part of its value."""
_PROJECTIONS = ("k_proj", "qkv_proj", "query_key_value", "c_attn")
"""Projections that make keys, of which each process has the heads of its own."""


@dataclass(frozen=True)
class Split:
    """The KV heads of a process: a block of those of the model.

    Attributes:
        index, count: number of the process, and of all.
        heads: KV heads of a layer of the model.
    """

    index: int
    count: int
    heads: int

    def given_to(self, press: P) -> P:
        """The press that scores these heads as it would among all."""
        other = replace(press)
        object.__setattr__(other, _SPLIT, self)
        return other

    def first(self, own: int) -> int:
        """Index of the first of the process's heads among those of a layer.

        Args:
            own: number of the process's heads.

        Raises:
            ValueError: if the layer's heads are not split evenly.
        """
        if own * self.count != self.heads:
            raise ValueError(
                f"a layer has {own} KV heads on each of {self.count} processes, and {self.heads} in all: which of them "
                "are a process's own cannot be told"
            )
        return self.index * own

    def mean(self, values: Tensor) -> Tensor:
        """Mean over all heads of the model: ``[B, 1, N]`` of the process's ``[B, K, N]``."""
        self.first(values.shape[1])
        summed = values.sum(dim=1, keepdim=True)
        torch.distributed.all_reduce(summed)
        return summed / self.heads

    def total(self, number: int) -> int:
        """Sum of the numbers of all processes."""
        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, number)
        return sum(found)

    def joined(self, tables: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Tables ``[B, K, T]`` of layers with all heads of the model, from those of the process's heads."""
        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, tuple(table.cpu() for table in tables))
        return tuple(torch.cat(parts, dim=1) for parts in zip(*found, strict=True))


def split_given_to(press: Budget) -> Split | None:
    """The heads that a press scores; None for all."""
    found: Split | None = getattr(press, _SPLIT, None)
    return found


def processes(config: PretrainedConfig) -> int:
    """Number of processes that share a model's heads; 1 unless it was loaded with tensor parallelism."""
    given: Any = getattr(config, "distributed_config", None)
    size = given.get("tp_size") if isinstance(given, dict) else getattr(given, "tp_size", None)
    return int(size or 1)


def split_of(config: PretrainedConfig) -> Split | None:
    """How processes share a model's heads; None if they do not, or cannot, see ``unsplit``."""
    count = processes(config)
    if count == 1 or unsplit(config):
        return None
    text: Any = config.get_text_config(decoder=True)
    return Split(torch.distributed.get_rank(), count, _heads(text))


def _heads(text: Any) -> int:
    heads = getattr(text, "num_key_value_heads", None)
    return int(text.num_attention_heads if heads is None else heads)


def of_all(config: PretrainedConfig, scores: S) -> S:
    """Results with the ``evicted_at`` and ``kv_bytes`` of all processes that share a model."""
    split = split_of(config)
    if split is None:
        return scores
    found: Any = scores
    tables, size = split.joined(found.evicted_at), split.total(found.kv_bytes)
    made: S = replace(found, evicted_at=tables, kv_bytes=size)
    return made


def unsplit(config: PretrainedConfig, count: int | None = None) -> str | None:
    """Why processes cannot share the heads of a model under a press; None if they can, or do not.

    Args:
        config: the model's configuration.
        count: number of processes; by default, of those that share it.
    """
    count = processes(config) if count is None else count
    if count == 1:
        return None
    text: Any = config.get_text_config(decoder=True)
    plan = getattr(text, "base_model_tp_plan", None) or {}
    split = [name for name, style in plan.items() if name.endswith(_PROJECTIONS) and str(style).startswith("colwise")]
    if not split:
        return "has no plan in transformers by which processes share its KV heads"
    if any("sinks" in name for name in plan):
        return "has attention sinks, of which each process has some"
    if _heads(text) % count:
        return f"has {_heads(text)} KV heads, which {count} processes cannot share evenly"
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() != count:
        return f"is shared by {count} of {torch.distributed.get_world_size()} processes, and a press serves all or one"
    return None


def shared_by(config: PretrainedConfig, count: int) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for a model that processes share.

    Args:
        config: the model's configuration.
        count: number of processes.

    Raises:
        ValueError: if they cannot share it, or this release of transformers cannot tell a press that they do.
    """
    if reason := unsplit(config, count):
        raise ValueError(f"the model {reason}: leave out tensor parallelism")
    try:
        from transformers.distributed.configuration_utils import DistributedConfig

        made = DistributedConfig(tp_plan="auto", tp_size=count)
    except (ImportError, TypeError):
        raise ValueError(
            f"{interface.VERSION} does not tell that processes share a model: take 5.24, or leave out tensor "
            "parallelism"
        ) from None
    return {"distributed_config": made}
