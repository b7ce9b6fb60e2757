"""What a press refuses, and in which words."""

import re
from typing import Any

import pytest
import torch

from pressgauge import KnormPress
from pressgauge.conformance import architectures

STATES = torch.zeros(1, 2, 3, 4)


@pytest.mark.parametrize(("name", "given"), [("keys", ([1.0], STATES)), ("values", (STATES, [1.0]))])
def test_compress_names_what_is_no_tensor_and_the_shape_that_it_has_to_have(name: str, given: tuple[Any, Any]) -> None:
    """The argument, the shape, and what was given."""
    sentence = f"{name} must be a tensor [batch, KV heads, tokens, dimension], got [1.0]"
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}"):
        KnormPress(0.5).compress(*given)


def test_a_press_is_resolved_on_the_model_that_it_is_given() -> None:
    """The layers that it cannot prune become numbers; nothing else of it changes."""
    model = architectures.hybrid()
    press = KnormPress(0.5, sinks=3, skip_layers="unprunable")
    resolved = press.resolved(model)
    assert resolved.skip_layers == architectures.LINEAR
    assert (resolved.keep_ratio, resolved.sinks) == (0.5, 3)
    with pytest.raises(TypeError, match="^model must be a transformers model, got 3"):
        press.resolved(3)  # type: ignore[arg-type]
