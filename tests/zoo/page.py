"""The page of the documentation that the zoo writes."""

from collections import Counter
from collections.abc import Iterator, Mapping

import torch
import transformers

from zoo.examine import CRASH, FALSE, LENGTH, NOT_BUILT, PADDED, PRESS, REFUSED, RIGHT, UNCHECKED, WRONG, Verdict

KINDS = {
    RIGHT: "every check passes, once the layers named here are skipped",
    REFUSED: "the press raises an error whose sentence is true, and no layer is left",
    FALSE: "the press raises an error, and the way out that it offers does not work",
    WRONG: "a number differs from the oracle's, without an error",
    CRASH: "something fails by an error that is not pressgauge's, or does not end",
    UNCHECKED: "the oracle cannot mask the attention of this model",
    NOT_BUILT: "no tiny model of it runs here",
}
"""What the verdicts mean, in the order of the page."""

INTRODUCTION = """# Architectures

Written by `nox -s zoo`, on transformers {transformers} and torch {torch}. `AutoModelForCausalLM` of this release knows
{count} architectures. A tiny model of each, with random weights in float64, meets `{press}`.

| verdict | architectures | meaning |
| --- | ---: | --- |
{counts}

A model is checked on a text of {length} tokens, fed as a prompt and single tokens, in chunks, and token by token:

- With `keep_ratio=1` every logit is bit-identical to that of the stock model with its own cache.
- The press holds as many entries as its schedule says.
- Attached, as a plain cache, by `method="stepwise"` and in one pass it gives the same NLL, and the same evictions.
- Each row of a padded batch ({padded} tokens) gives what it gives alone.
- `eager` and `sdpa` agree, and `TOVAPress` gives the same stepwise and in one pass.
- Without a press, and with all layers skipped, the model computes what it computes alone.
- All logits equal those of an **oracle** that imports nothing from pressgauge: the stock model decodes with an
  uncompressed cache of its own and its own mask, to which minus infinity is added at every key that `evicted_at` says
  is gone. A mistake that all ways of the package share is one that the oracle does not make.

Where a press refuses a model, its sentence is tried: with the layers skipped that it names, all of the above has to
hold; where no layer is left, a method that it offers has to run without a press; and what it says of the model has to
be what the stock model does. The run fails if the verdict on any architecture is {bad}.
"""


def _cell(text: str) -> str:
    """Text that stays as it is in a cell of a table."""
    # What a package says of another one's installation is no line of ours.
    text = text.replace("pip install", "installing")
    for sign in "|*_<":
        text = text.replace(sign, f"\\{sign}")
    return text


def _sentence(verdict: Verdict) -> str:
    """What a verdict says, without the release, which the page says once."""
    return _cell(verdict.detail.replace(f" (transformers {transformers.__version__})", ""))


def _lines(found: Mapping[str, Verdict]) -> Iterator[str]:
    counts = Counter(one.kind for one in found.values())
    yield INTRODUCTION.format(
        transformers=transformers.__version__,
        torch=torch.__version__.partition("+")[0],
        count=len(found),
        press=f"{type(PRESS).__name__}({PRESS.keep_ratio}, prune_after={PRESS.prune_after})",
        counts="\n".join(f"| {kind} | {counts[kind]} | {meaning} |" for kind, meaning in KINDS.items()),
        length=LENGTH,
        padded=", ".join(map(str, PADDED)),
        bad=f"{FALSE}, {WRONG}, {CRASH} or {UNCHECKED}",
    )
    yield "| architecture | verdict | layers skipped | sentence |"
    yield "| --- | --- | --- | --- |"
    for name, one in sorted(found.items()):
        yield f"| {name} | {one.kind} | {', '.join(map(str, one.skipped))} | {_sentence(one)} |"


def page(found: Mapping[str, Verdict]) -> str:
    """The page: how many architectures have which verdict, what is checked, and a row for each architecture.

    Args:
        found: the verdicts, by ``model_type``.
    """
    return "\n".join(_lines(found)) + "\n"
