"""Models and texts that the laws cannot judge: they are not applicable, with a true sentence."""

from typing import Any

import pytest
import torch
from transformers import cache_utils

from pressgauge import KnormPress
from pressgauge.conformance import architectures
from pressgauge.conformance.scope import require_keys_first, require_within_windows
from pressgauge.conformance.session import run
from pressgauge.conformance.subjects import Subject, subject_of
from pressgauge.rules import Window

IDS = torch.arange(3, 23)[None]


@pytest.fixture(scope="module")
def subject() -> Subject:
    """A press."""
    return subject_of("knorm", KnormPress, {"kind": "context"})


@pytest.mark.parametrize("chunked", [True, False])
def test_texts_within_a_window_are_in_scope(chunked: bool) -> None:
    """A window of 8 stores 7 tokens, and the next one sees all of them."""
    windows = {2: Window(20), 1: Window(8, chunked)}
    require_within_windows(windows, 7)
    require_within_windows({}, 8)
    with pytest.raises(pytest.skip.Exception, match=r"not applicable: layer 1 attends within .* of 8 and stores 7 of"):
        require_within_windows(windows, 8)


@pytest.mark.parametrize("name", ["gemma3", "gpt_oss", "mistral"])
def test_a_run_ends_where_a_window_does(name: str, subject: Subject) -> None:
    """A text that leaves a window has evictions by age, which the laws would take for a press's."""
    changes: dict[str, Any] = {"sliding_window": 12}
    if name == "gpt_oss":
        changes["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
    model = architectures.build(name, **changes)
    trace = run(subject, model, IDS[:, :11], [6, 1, 4], keep_ratio=0.5, prune_after=4)
    assert [keys.shape[2] for keys, _ in trace.passes[-1].held] == [6, 6, 6]
    with pytest.raises(
        pytest.skip.Exception, match=r"layer 0 attends within a window of 12 and stores 11 of this law's"
    ):
        run(subject, model, IDS[:, :12], [6, 1, 5], keep_ratio=0.5, prune_after=4)


def test_models_with_keys_first_are_in_scope(subject: Subject) -> None:
    """Qwen3-Next has linear attention in its first layers, and the one of the laws in its last."""
    require_keys_first(architectures.shared("llama"))
    if not hasattr(cache_utils, "LinearAttentionLayer"):
        pytest.skip("this release has no layers without keys")
    require_keys_first(architectures.build("qwen3_next"))
    with pytest.raises(
        pytest.skip.Exception, match="layer 0 of Qwen3NextForCausalLM caches no keys, and a later layer"
    ):
        run(subject, architectures.hybrid(), IDS, [20])
