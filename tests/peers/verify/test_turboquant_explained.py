"""turboquant-explained 0.1.1: ``turboquant.patch_model(model, b_key=2, b_value=2)``."""

import turboquant

from peers.verify.plain import crashing, llama, tokens


def test_the_documented_call_crashes() -> None:
    """The cache has no ``layers``, which transformers 5 reads; its requirement is transformers 4.40 or newer."""
    model = llama()
    cache = turboquant.patch_model(model, b_key=2, b_value=2)
    with crashing(AttributeError, match="layers"):
        model.generate(tokens(20), past_key_values=cache, max_new_tokens=4)
