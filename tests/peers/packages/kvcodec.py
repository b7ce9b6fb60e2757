"""kvcodec: ``SeqCodec``, a codec of the tensors of one layer."""

from typing import Any

import torch
from kvcodec import SeqCodec
from torch import Tensor

from peers.packages.adapt import QUANTISES, declared, written_once


def factory(keep_ratio: float) -> Any:
    """The README's call, once per pass and row."""
    codec = SeqCodec()

    def restored(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        rows = [codec.decompress(codec.compress(*row)) for row in zip(keys, values, strict=True)]
        both = (torch.stack(tensors) for tensors in zip(*rows, strict=True))
        return tuple(tensor.to(keys.dtype) for tensor in both)  # type: ignore[return-value]

    return written_once(restored)


declared(factory, {**QUANTISES, "bits": 8, "simulated": True})
