"""Keys that get new positions after evictions: their rotation, by the model's own rotary embedding."""

import sys
from typing import Any

import torch
from torch import Tensor

from pressgauge.conformance.outcomes import Departure, not_applicable
from pressgauge.conformance.session import Trace

ROUNDING = 64.0
"""Tolerance of a rotated key, relative to its largest number, in units of the dtype's precision."""
OF_ANGLES = 2.0**-17
"""Least tolerance, since transformers computes sines and cosines in float32."""


class Rotary:
    """Rotation of keys of a model.

    Args:
        model: the model.
    """

    def __init__(self, model: Any) -> None:
        decoder = model.get_decoder()
        self.embedding = getattr(decoder, "rotary_emb", None)
        modules = {type(module).__module__ for module in decoder.modules() if hasattr(module, "layer_idx")}
        found = [getattr(sys.modules[name], "apply_rotary_pos_emb", None) for name in sorted(modules)]
        self.apply: Any = next((function for function in found if function), None)
        if self.embedding is None or self.apply is None:
            not_applicable("the model does not tell how it rotates keys")

    @torch.no_grad()
    def rotated(self, keys: Tensor, old: Tensor, new: Tensor) -> Tensor:
        """Keys ``[N, D]``, rotated by positions ``[N]``, rotated by others instead; in float64."""
        wide = keys[None, None].double()
        assert self.embedding is not None
        there = self.embedding.inv_freq.device
        for positions, sign in ((old, -1), (new, 1)):
            cos, sin = (part.double() for part in self.embedding(wide, positions[None].to(there)))
            if not torch.allclose(cos**2 + sin**2, torch.ones_like(cos), atol=1e-3):
                not_applicable("the model's rotary embedding scales its keys")
            wide = self.apply(wide.to(cos.device), wide.to(cos.device), cos, sign * sin)[1]
        return wide[0, 0].cpu()


def check_rotation(trace: Trace) -> None:
    """Check that the held keys of a layer are rotated by the positions 0, 1, 2, ... in the order of the text.

    Held entries are matched with those passed in by their values.

    Raises:
        Departure: if a key is rotated otherwise.
    """
    rotary = Rotary(trace.model)
    given = [one.positions for one in trace.passes]
    if any(positions is None for positions in given):
        not_applicable("the model does not tell by which positions it rotates")
    positions = torch.cat([one[:1] for one in given if one is not None], dim=1)[0]
    for number in range(len(trace.passes)):
        for layer, (keys, values) in enumerate(trace.passes[number].held):
            arrived, own = trace.arrived(layer, number + 1)
            for head in range(keys.shape[1]):
                where = f"layer {layer}, KV head {head} after pass {number}"
                tokens = _tokens(values[0, head], own[0, head], where)
                # In the order of the text, whatever that of storage.
                order = tokens.argsort()
                _check_head(rotary, keys[0, head, order], arrived[0, head], tokens[order], positions, where)


def _tokens(values: Tensor, own: Tensor, where: str) -> Tensor:
    """Tokens ``[N]`` of held values ``[N, D]`` among those passed in, ``[T, D]``."""
    same = (values[:, None] == own[None]).all(-1)
    if not same.any(-1).all():
        entry = int(torch.nonzero(~same.any(-1))[0])
        raise Departure(f"{where}: the value of entry {entry} was never passed in, so its key cannot be identified")
    return same.int().argmax(-1)


def _check_head(rotary: Rotary, keys: Tensor, arrived: Tensor, tokens: Tensor, positions: Tensor, where: str) -> None:
    own, old = arrived[tokens], positions[tokens]
    places = torch.arange(len(tokens))
    limit = max(OF_ANGLES, ROUNDING * torch.finfo(keys.dtype).eps) * own.double().abs().amax(-1)
    error = (keys - rotary.rotated(own, old, places)).abs().amax(-1)
    wrong = torch.nonzero(~(error <= limit))[:, 0].tolist()
    if not wrong:
        return
    place = wrong[0]
    every = torch.arange(int(positions.max()) + len(tokens) + 1)
    turned = rotary.rotated(own[place].expand(len(every), -1), old[place].expand(len(every)), every)
    matching = torch.nonzero((turned - keys[place]).abs().amax(-1) <= limit[place])[:, 0].tolist()
    found = f"by position {matching[0]}" if matching else "by no position from 0 on"
    raise Departure(
        f"{where}: the key of token {int(tokens[place])} is rotated {found}; keys are declared as rotated anew, and of "
        f"{len(tokens)} entries it is number {place}, so that position {place} is right"
    )
