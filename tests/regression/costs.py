"""Deterministic costs of a press: floating-point operations, operators and bytes, above the uncompressed run."""

from collections.abc import Callable, Container, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import PreTrainedModel

from pressgauge import Press, perplexity
from pressgauge.cache import storage_nbytes
from pressgauge.conformance.versions import using
from pressgauge.decoder import attached, new_cache
from pressgauge.presses import PRESSES
from regression.baseline import Row
from regression.cases import SCHEDULES

TOKENS = 128
PROMPT = 80
STEPS = 8
PRUNE_AFTER = 64


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


class Meter(TorchDispatchMode):
    """Counter of dispatched operators and of the bytes of their storages.

    Kernels may use further memory. The counts are the same in every run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        made = {}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage())._cdata not in given:
                made[storage._cdata] = storage.nbytes()
        self.nbytes += sum(made.values())
        return result


def cost(work: Callable[[], object]) -> dict[str, int]:
    """Cost of one call."""
    flops = FlopCounterMode(
        display=False,
        custom_mapping={torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops},
    )
    meter = Meter()
    # The meter is innermost, and sees the operators that the counter passes on.
    with flops, meter:
        work()
    return {"flops": flops.get_total_flops(), "operators": meter.operators, "bytes": meter.nbytes}


@torch.no_grad()
def steps(model: PreTrainedModel, ids: Tensor, press: Press | None) -> tuple[dict[str, int], int]:
    """Cost of decoding ``STEPS`` tokens after a prompt and equally many warm-up steps, and the bytes of the cache
    afterwards."""
    cache = new_cache(press, model, PROMPT)

    def feed(passes: Iterable[tuple[int, int]]) -> None:
        for start, stop in passes:
            positions = torch.arange(start, stop, device=ids.device)[None]
            model(ids[:, start:stop], position_ids=positions, **using(cache))

    singly = [(token, token + 1) for token in range(PROMPT, PROMPT + 2 * STEPS)]
    with attached(press, model):
        feed([(0, PROMPT), *singly[:STEPS]])
        found = cost(lambda: feed(singly[STEPS:]))
    return found, sum(storage_nbytes(layer) for layer in cache.layers)


def _above(found: dict[str, int], base: dict[str, int], name: str) -> Iterator[tuple[str, int]]:
    for what, value in found.items():
        yield f"{name} {what}", value - base[what]


def costs(model: PreTrainedModel, ids: Tensor, wanted: Container[str] | None = None) -> dict[str, Row]:
    """A row per press and schedule, or for the requested ones, as differences to the uncompressed run, and a row for
    that run."""
    ids = ids[:1, :TOKENS]
    decode, kv_bytes = steps(model, ids, None)
    onepass = cost(lambda: perplexity(model, ids))
    nothing = dict.fromkeys(onepass, 0)
    found: dict[str, Row] = {
        "uncompressed": {
            **dict(_above(decode, nothing, "decode")),
            **dict(_above(onepass, nothing, "onepass")),
            "kv bytes": kv_bytes,
        }
    }
    for name, kind in PRESSES.items():
        for schedule in SCHEDULES:
            if wanted is not None and f"{name} {schedule}" not in wanted:
                continue
            press = kind(keep_ratio=0.5, prune_after=PRUNE_AFTER, schedule=schedule)
            mine, mine_bytes = steps(model, ids, press)
            once = cost(partial(perplexity, model, ids, press, PROMPT))
            found[f"{name} {schedule}"] = {
                **dict(_above(mine, decode, "decode")),
                **dict(_above(once, onepass, "onepass")),
                "kv bytes": mine_bytes - kv_bytes,
            }
    return found
