"""Laws about what a quantised cache costs: predictions of a trained model, and memory."""

from typing import Any

from pressgauge.conformance.outcomes import not_applicable
from pressgauge.conformance.quantised import quantised_only
from pressgauge.conformance.quantised_bytes import check_bytes
from pressgauge.conformance.quantised_model import check_model_notices
from pressgauge.conformance.subjects import Subject
from pressgauge.texts import load_text

PROMPT, CHUNK, TOKENS = 192, 16, 320
DOCUMENTS = 8


def test_a_model_notices_fewer_bits(subject: Subject, trained: tuple[Any, Any]) -> None:
    """A trained model diverges from the uncompressed one by more than from itself; with fewer bits neither the KL
    divergence nor the NLL falls: paired tests, with a family-wise error rate of 1 %."""
    quantised_only(subject)
    model, tokenizer = trained
    try:
        from pressgauge.conformance.trends import judged
    except ModuleNotFoundError:
        not_applicable("its test needs scipy, which is not installed: install the extra pressgauge[bench]")
    ids = load_text("reference", tokenizer, samples=DOCUMENTS, tokens=TOKENS)
    check_model_notices(subject, model, ids, [PROMPT] + [CHUNK] * ((TOKENS - PROMPT) // CHUNK), judged)


def test_a_token_takes_the_declared_bytes(subject: Subject) -> None:
    """The memory of a token is that of its codes and metadata, by the declared bits, groups and ratio; a simulation
    says that it is one."""
    quantised_only(subject)
    check_bytes(subject)
