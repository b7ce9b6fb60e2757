"""Mutants of attention with sinks, with a softcap, and of latents."""

from typing import Any

import pytest
import torch
from torch import Tensor

from harness.mutants.mutant import Breaks, Mutant
from pressgauge import onepass
from pressgauge.models import latents
from pressgauge.softmax import Softmax
from properties import test_softmax_and_latents

LAW = test_softmax_and_latents.test_one_pass_and_decoding_equal_a_plain_loop_over_the_stock_model


def left_out(patch: pytest.MonkeyPatch) -> None:
    """Where two parts are merged, the sinks take no part."""
    attend, share = onepass._attend, Softmax.share
    merged: list[bool] = []

    def noting(*given: Any) -> tuple[Tensor, Tensor]:
        merged[:] = [given[4] is None]
        return attend(*given)

    def only_unmerged(self: Softmax, output: Tensor, total: Tensor, heads: int) -> Tensor:
        return output if merged[0] else share(self, output, total, heads)

    patch.setattr(onepass, "_attend", noting)
    patch.setattr(Softmax, "share", only_unmerged)


def in_both(patch: pytest.MonkeyPatch) -> None:
    """Each of two merged parts has the sinks in its softmax, which count twice."""
    attend, share = onepass._attend, Softmax.share

    def shared(*given: Any) -> tuple[Tensor, Tensor]:
        output, total = attend(*given)
        softmax, heads = given[5], given[1].shape[1]
        sinks = softmax.grouped_sinks(total, heads)
        if sinks is None:
            return output, total
        each = sinks.repeat_interleave(total.shape[2] // sinks.shape[1], dim=1)
        return share(softmax, output, total, heads), torch.logaddexp(total, each)

    patch.setattr(onepass, "_attend", shared)
    patch.setattr(Softmax, "share", lambda self, output, total, heads: output)


def after_the_mask(patch: pytest.MonkeyPatch) -> None:
    """The softcap is applied to masked logits, and makes minus infinity minus the softcap."""

    def attention(self: Softmax, query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Any) -> Any:
        logits = query @ key.mT * scale
        logits = self.capped(logits if bias is None else logits + bias)
        total = logits.logsumexp(dim=-1)
        return (logits - total[..., None]).exp() @ value, total

    patch.setattr(Softmax, "attention", attention)


def votes_without_sinks(patch: pytest.MonkeyPatch) -> None:
    """Presses that score by attention count what keys would receive without sinks."""
    patch.setattr(Softmax, "weights", lambda self, logits: logits.softmax(dim=-1))


def votes_without_softcap(patch: pytest.MonkeyPatch) -> None:
    """Presses that score by attention count what keys would receive without a softcap."""
    weights = Softmax.weights

    def uncapped(self: Softmax, logits: Tensor) -> Tensor:
        cap = self.softcap
        if cap is None:
            return weights(self, logits)
        return weights(self, logits.div(cap).clamp(-1, 1).atanh().mul(cap).where(logits.isfinite(), logits))

    patch.setattr(Softmax, "weights", uncapped)


def latents_only(patch: pytest.MonkeyPatch) -> None:
    """Entries are ranked by their latents, without the rotary keys."""
    patch.setattr(latents, "entry_keys", lambda kept, rotary: kept)


def expanded(patch: pytest.MonkeyPatch) -> None:
    """One pass ranks expanded keys, which no cache holds."""

    def keys(module: Any, kept: Tensor, rotary: Tensor) -> Tensor:
        found: Tensor = module.expand_kv(kept, rotary)[0]
        return found

    patch.setattr(latents, "scored_keys", keys)


def softmax_mutant(name: str, what: str, breaks: Breaks, model: str, press: str, says: str) -> Mutant:
    """Mutant of the engine, for a model and a press."""
    case = test_softmax_and_latents.Case(model, press)
    return Mutant(name, what, "plausible", case, LAW, twin=case, breaks=breaks, says=(says,))


SOFTMAX = [
    softmax_mutant("sinks-left-out", "sinks take no part where two parts are merged", left_out, "gpt_oss", "knorm-long",
                   "onepass (evicts others|is off by)"),
    softmax_mutant("sinks-twice", "sinks take part in both of two merged parts", in_both, "gpt_oss", "knorm-long",
                   "onepass (evicts others|is off by)"),
    softmax_mutant("softcap-after-mask", "the softcap is applied after the mask", after_the_mask, "gemma2", "knorm",
                   "onepass (evicts others|is off by)"),
    softmax_mutant("votes-without-sinks", "attention scores leave out the sinks", votes_without_sinks, "gpt_oss",
                   "tova", "onepass evicts others"),
    softmax_mutant("votes-without-softcap", "attention scores leave out the softcap", votes_without_softcap, "gemma2",
                   "tova", "onepass evicts others"),
    softmax_mutant("latents-only", "latents are ranked where keys are meant", latents_only, "deepseek_v3", "knorm",
                   "onepass evicts others"),
    softmax_mutant("latents-expanded", "one pass ranks expanded keys", expanded, "deepseek_v3", "knorm",
                   "onepass evicts others"),
]  # fmt: skip
