"""Laws about several models: one compressor on two of them, and models that have none; and about several layers."""

from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from pressgauge.conformance import architectures, devices
from pressgauge.conformance.checks import wrong_tokens
from pressgauge.conformance.guard import guarded
from pressgauge.conformance.operations import in_words
from pressgauge.conformance.outcomes import Departure, not_applicable
from pressgauge.conformance.session import Session, run
from pressgauge.conformance.strategies import normal_keys
from pressgauge.conformance.subjects import Subject
from pressgauge.conformance.traces import audited, run_scripted
from pressgauge.conformance.versions import using
from pressgauge.conventions.factories import named_by, needs
from pressgauge.conventions.state import ORIGINAL, replaced

LENGTHS = [12, 1, 1, 3]
OPTIONS: dict[str, Any] = {"keep_ratio": 0.5, "prune_after": 4}


@cache
def _other(name: str) -> architectures.Model:
    changes: dict[str, dict[str, Any]] = {
        "a Llama": {},
        "a Llama of 5 layers with wider heads": {"num_hidden_layers": 5, "head_dim": 16, "num_key_value_heads": 3},
        "a Llama of one layer with narrower heads": {"num_hidden_layers": 1, "head_dim": 4},
        "a Qwen3": {"num_hidden_layers": 2},
        "a GPT-NeoX": {},
    }
    kind = {"a Qwen3": "qwen3", "a GPT-NeoX": "neox"}.get(name, "llama")
    return architectures.build(kind, **changes[name]).to(devices.chosen())


def other(name: str) -> architectures.Model:
    """A shared model that differs from the tiny Llama."""
    return guarded(_other(name))


def test_one_compressor_serves_models_of_any_shape(subject: Subject) -> None:
    """On a second model, of another depth, head width or class, and on the first again, a compressor gives what a new
    compressor gives."""
    if {"model", "dtype", "device"} & named_by(subject.factory) or "config" in needs(subject.factory):
        not_applicable("the factory is told the model, so a compressor is of one model")
    names = [
        "a Llama",
        "a Llama of 5 layers with wider heads",
        "a Llama of one layer with narrower heads",
        "a Qwen3",
        "a Llama",
    ]
    ids = architectures.text(other("a Llama"), 1, sum(LENGTHS))
    expected = {name: run(subject, other(name), ids, LENGTHS, **OPTIONS) for name in dict.fromkeys(names)}
    compressor = subject(prompt_length=LENGTHS[0], **OPTIONS)
    for before, name in pairwise([None, *names]):
        assert name is not None
        where = f"on {name}" if before is None else f"on {name}, after {before}"
        with in_words(f"one compressor {where}"):
            found = run(subject, other(name), ids, LENGTHS, compressor=compressor, **OPTIONS)
        if wrong := wrong_tokens(found.logits, expected[name].logits):
            raise Departure(f"one compressor {where} gives other logits from token {wrong[0]} on than a new compressor")
        for layer, (mine, own) in enumerate(zip(found.passes[-1].held, expected[name].passes[-1].held, strict=True)):
            if mine[0].shape != own[0].shape:
                raise Departure(
                    f"one compressor {where} holds keys {list(mine[0].shape)} in layer {layer}, and a new compressor "
                    f"{list(own[0].shape)}"
                )


def test_another_model_is_left_alone(subject: Subject, one_model: architectures.Model) -> None:
    """While one model carries a compressor, and afterwards, other models give the logits that they gave before it was
    created; functions of transformers are as they were imported."""
    names = ["a Llama", "a Llama of 5 layers with wider heads", "a Qwen3", "a GPT-NeoX"]
    expected = {name: _plain(other(name)) for name in names}
    ids = architectures.text(one_model, 1, sum(LENGTHS))
    when = "before anything was fed"

    def check() -> None:
        for name, logits in expected.items():
            with in_words(f"{name} without a compressor, {when},"):
                found = _plain(other(name))
            if not torch.equal(found, logits):
                error = float((found - logits).abs().max() / logits.abs().max())
                raise Departure(
                    f"{name} without a compressor, {when}, has other logits than before, by up to {error:.2g} of the "
                    "largest"
                )

    with Session(subject, subject(model=one_model, prompt_length=LENGTHS[0], **OPTIONS), one_model) as session:
        check()
        for length in LENGTHS:
            session.feed(ids[:, session.seen : session.seen + length])
            when = f"while another model has one and was fed {session.seen} tokens"
            if length > 1:
                check()
    when = "after another model had one"
    check()
    alone = run(subject, one_model, ids, LENGTHS, **OPTIONS)
    if wrong := wrong_tokens(torch.cat([one.logits for one in session.passes], dim=1), alone.logits):
        raise Departure(f"the logits of token {wrong[0]} are others if models without a compressor run in between")
    if patched := replaced(ORIGINAL):
        raise Departure(f"{patched}, for all models of the process")


@torch.no_grad()
def _plain(model: architectures.Model) -> Tensor:
    """Logits of a model with its own cache: a prompt, further tokens, and a generated token."""
    ids = architectures.text(model, 1, 9, seed=4).to(model.device)
    cache = DynamicCache(config=model.config)
    parts = [model(part, **using(cache)).logits for part in (ids[:, :6], ids[:, 6:7], ids[:, 7:])]
    return torch.cat(parts, dim=1).cpu()


def test_a_layer_decides_by_its_own_keys(subject: Subject) -> None:
    """Which tokens a layer evicts does not change with the keys of the other layers."""
    if subject.declares.layers == "joint":
        not_applicable("the subject declares that layers decide jointly")
    one, two = (normal_keys(20, seed=seed) for seed in (1, 2))
    for lengths in ([14] + [1] * 6, [6, 5, 4, 5]):
        same = {
            name: audited(run_scripted(subject, keys, lengths, **OPTIONS)).evicted_at
            for name, keys in (("one", one), ("two", two))
        }
        for names, keys in ((("one", "two"), [one, two]), (("two", "one"), [two, one])):
            tables = audited(run_scripted(subject, torch.stack(keys), lengths, **OPTIONS)).evicted_at
            for layer, name in enumerate(names):
                if len(wrong := torch.nonzero(tables[layer] != same[name][layer])):
                    _, head, token = wrong[0].tolist()
                    raise Departure(
                        f"whether layer {layer}, KV head {head} evicts token {token} of {sum(lengths)} depends on the "
                        "keys of another layer"
                    )
