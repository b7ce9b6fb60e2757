"""Bytes that each token of a quantised cache takes, against what is declared."""

import functools

import torch

from pressgauge.conformance import architectures
from pressgauge.conformance.outcomes import Departure, not_applicable, note
from pressgauge.conformance.quantisation import pair
from pressgauge.conformance.quantised import NAMES
from pressgauge.conformance.subjects import Subject
from pressgauge.conformance.weighing import weigh

HEAD = 128
"""Numbers of a key, for which packages state their ratios."""
SHORT, MORE = 320, 256
"""Tokens of a text, more than usual residuals, and how many more a second one has."""
METADATA = 8
"""Bytes of metadata for each group: a scale and a zero point in float32."""
SLACK = 1.1


@functools.cache
def _model() -> architectures.Model:
    built = architectures.build(
        "llama", head_dim=HEAD, num_hidden_layers=2, hidden_size=24, num_attention_heads=2, num_key_value_heads=1
    )
    built.half()
    return built


@functools.cache
def bytes_per_token(subject: Subject) -> float:
    """Bytes that a token takes in each layer and KV head: those of a longer text beyond those of a shorter one."""
    alive = [
        weigh(subject, _model(), architectures.text(_model(), 1, length), [length - 32, *[8] * 4], keep_ratio=1).alive
        for length in (SHORT, SHORT + MORE)
    ]
    return (alive[1] - alive[0]) / MORE / int(_model().config.num_hidden_layers)


def declared_bytes(subject: Subject) -> float | None:
    """Bytes of a token's key and value by the declared bits and groups; None if bits are not declared."""
    declares, total = subject.declares, 0.0
    for index in range(len(NAMES)):
        bits, group = pair(declares.bits)[index], pair(declares.group)[index]
        if bits is None:
            return None
        # A vector may have a few numbers of its own, such as norms.
        groups = HEAD / min(group, HEAD) if group else 2
        total += HEAD * bits / 8 + METADATA * groups
    return total


def check_bytes(subject: Subject) -> None:
    """Check that a token takes no more bytes than its declared bits, groups and ratio say.

    Raises:
        Departure: if it takes more.
    """
    declares = subject.declares
    taken, plain = bytes_per_token(subject), 2 * HEAD * torch.float16.itemsize
    sentence = (
        f"a token takes {taken:.4g} bytes in each layer and KV head ({HEAD} numbers in float16), "
        f"{plain / taken:.3g} times less than the {plain} of a DynamicCache"
        if taken > 0
        else "no token takes more memory"
    )
    note(sentence)
    if declares.simulated:
        not_applicable("the subject declares that quantisation is simulated, and stores entries at full size")
    wanted = declared_bytes(subject)
    if wanted is not None and taken > SLACK * wanted:
        raise Departure(f"{sentence}; by the declared bits and groups it takes {wanted:.4g} at most")
    if taken > plain:
        raise Departure(sentence)
    if declares.ratio is not None and taken * declares.ratio > 1.02 * plain:
        raise Departure(f"{sentence}; a ratio of {declares.ratio:.3g} is declared")
