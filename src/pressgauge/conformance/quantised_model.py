"""What a trained model notices of a quantised cache: NLL, KL divergence and top-1 agreement."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from pressgauge.conformance.outcomes import Departure, note
from pressgauge.conformance.session import run
from pressgauge.conformance.subjects import Subject
from pressgauge.conformance.traces import uncompressed

FLOOR = 10
"""Multiple of the divergence of the uncompressed run from itself from which a model notices."""
MATERIAL = 0.1
"""Falls of the NLL below this share of the divergence are not judged: noise also lowers the NLL of single texts."""


@dataclass(frozen=True)
class Noticed:
    """Figures of a run beside the uncompressed one, per document."""

    nll: Tensor
    divergence: Tensor
    """KL divergence from the uncompressed model, nats per token."""
    agreement: float
    """Share of tokens with the same top-1 prediction."""

    def __str__(self) -> str:
        return (
            f"NLL {float(self.nll.mean()):.4f}, KL divergence {float(self.divergence.mean()):.2g}, top-1 agreement "
            f"{100 * self.agreement:.2f} %"
        )


def noticed(logits: Tensor, plain: Tensor, ids: Tensor, prompt: int) -> Noticed:
    """Figures of logits ``[B, T, V]`` from the end of the prompt on."""
    own, other = (x[:, prompt - 1 : -1].double().log_softmax(-1) for x in (logits, plain))
    targets = ids[:, prompt:, None]
    nll = -own.gather(-1, targets)[..., 0].mean(1)
    divergence = (other.exp() * (other - own)).sum(-1).mean(1)
    agreement = float((own.argmax(-1) == other.argmax(-1)).double().mean())
    return Noticed(nll, divergence, agreement)


Judge = Callable[[Mapping[str, tuple[Any, Any]]], tuple[list[str], list[str]]]
"""Test of a family of comparisons, which gives sentences on those that fall and on the others."""


def check_model_notices(subject: Subject, model: Any, ids: Tensor, passes: list[int], judged: Judge) -> None:
    """Check that a model notices quantisation, and the more the fewer bits.

    Args:
        subject: the subject.
        model: a trained model.
        ids: texts ``[B, T]``.
        passes: lengths of passes; the first is the prompt.
        judged: ``trends.judged``, which needs scipy.

    Raises:
        Departure: if it does not.
    """
    plain, whole = (uncompressed(model, ids, lengths)[0].double() for lengths in (passes, [sum(passes)]))
    itself = noticed(whole, plain, ids, passes[0])
    floor = float(itself.divergence.abs().mean())
    found: dict[str, Noticed] = {}
    for name, options in _settings(subject).items():
        logits = run(subject, model, ids, passes, keep_ratio=1, **options).logits
        if not logits.isfinite().all():
            raise Departure(f"{name}: the logits are not finite on a trained model")
        found[name] = noticed(logits, plain, ids, passes[0])
        note(f"{name}: {found[name]} (uncompressed {itself})")
        if float(found[name].divergence.mean()) <= FLOOR * floor:
            raise Departure(
                f"{name}: the KL divergence from the uncompressed model is {float(found[name].divergence.mean()):.1g} "
                f"nats, and that of the uncompressed model from itself in one pass is {floor:.1g}: nothing quantised "
                "reaches attention"
            )
    _check_trend(found, judged)


def _settings(subject: Subject) -> Mapping[str, dict[str, Any]]:
    """Options by name, in order of descending bits; one if the factory does not take bits."""
    bits = getattr(subject.factory, "options", {}).get("bits", ())
    numbers = sorted((each for each in bits if isinstance(each, int | float)), reverse=True)
    if len(numbers) < 2:
        return {subject.name: {}}
    return {f"bits={each}": {"bits": each} for each in numbers}


def _check_trend(found: Mapping[str, Noticed], judged: Judge) -> None:
    family = {}
    for (name, one), (other, two) in pairwise(found.items()):
        family[f"KL divergence from {name} to {other}"] = (one.divergence.numpy(), two.divergence.numpy())
        if float((one.nll - two.nll).mean()) > MATERIAL * float(two.divergence.mean()):
            family[f"NLL from {name} to {other}"] = (one.nll.numpy(), two.nll.numpy())
    different = {name: pair for name, pair in family.items() if (pair[0] != pair[1]).any()}
    if len(different) < len(family):
        same = next(name for name in family if name not in different)
        raise Departure(f"{same} does not change at all: the option has no effect")
    fallen, _ = judged(different) if different else ([], [])
    if fallen:
        raise Departure(f"it falls with fewer bits: {fallen[0].replace('NLL is', 'it is')}")
