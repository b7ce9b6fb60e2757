"""Laws about quantised caches on chosen entries: other rows and heads, padding, extremes, later tokens, queries."""

from pressgauge.conformance.outcomes import not_applicable
from pressgauge.conformance.quantised import quantised_only
from pressgauge.conformance.quantised_inputs import (
    check_causal,
    check_extremes,
    check_heads,
    check_inner_products,
    check_padding,
    check_rows,
)
from pressgauge.conformance.session import provided_for
from pressgauge.conformance.subjects import Subject


def test_a_row_is_quantised_as_if_alone(subject: Subject) -> None:
    """Rows of different loudness are read back as alone, and the others the same with a row taken out."""
    quantised_only(subject)
    check_rows(subject)


def test_a_head_is_quantised_as_if_alone(subject: Subject) -> None:
    """A loud KV head changes nothing of what is read back of the others, nor keys of values."""
    quantised_only(subject)
    check_heads(subject)


def test_padding_does_not_reach_codes_or_scales(subject: Subject) -> None:
    """A row after loud padding slots is read back as without padding."""
    quantised_only(subject)
    provided_for(subject, "padding")
    if not subject.declares.padding:
        not_applicable("the subject declares that it does not support padded rows")
    check_padding(subject)


def test_no_scale_is_made_with_later_tokens(subject: Subject) -> None:
    """Tokens of later passes change nothing of what is read back of earlier ones, but in a group declared over
    tokens."""
    quantised_only(subject)
    check_causal(subject)


def test_extreme_entries_are_read_back(subject: Subject) -> None:
    """Constants and zeros are read back as such; entries of 1e-4, 1e4 and 1e5, of an outlier channel and of 6e4 in
    float16 with the usual error; louder ones than the first pass saturate; a NaN stays in its entry."""
    quantised_only(subject)
    check_extremes(subject)


def test_inner_products_have_a_bounded_error(subject: Subject) -> None:
    """Inner products with random queries have a bounded variance, and no bias if it is declared: Student's t-test with
    an error rate of 1e-4, over seeds if the factory takes one."""
    quantised_only(subject)
    check_inner_products(subject)
