"""kvpress 0.5.5: ``with press(model):``, on the prompt of a plain cache."""

from typing import Any

import torch
from kvpress import KnormPress, SnapKVPress, StreamingLLMPress, TOVAPress
from torch import Tensor
from transformers import DynamicCache

from peers.verify.plain import crashing, llama, off, still, tokens


@torch.no_grad()
def prompted(press: Any, ids: Tensor, mask: Tensor | None = None) -> tuple[Any, Any]:
    """A model, and its cache after a prompt under a press."""
    model, cache = llama(), DynamicCache()
    with press(model):
        model(ids, past_key_values=cache, attention_mask=mask)
    return model, cache


def held(cache: Any) -> int:
    """Entries of layer 0."""
    return int(cache.layers[0].keys.shape[2])


def places(cache: Any, ids: Tensor) -> list[int]:
    """Tokens of layer 0 and KV head 0, in the order of the cache."""
    whole: Any = DynamicCache()
    with torch.no_grad():
        llama()(ids, past_key_values=whole)
    every = whole.layers[0].keys[0, 0]
    return [int((every - key).norm(dim=-1).argmin()) for key in cache.layers[0].keys[0, 0]]


def test_the_number_retained_is_computed_in_floats() -> None:
    """Of 100 entries at a compression ratio of .93, 6 are retained: 1 - .93 is .06999999999999995."""
    _, cache = prompted(KnormPress(0.93), tokens(100))
    still(held(cache) == 6, f"{held(cache)} entries", "7")


def test_the_observation_window_is_evicted() -> None:
    """SnapKV's window is evicted if fewer entries are retained than it has."""
    _, cache = prompted(SnapKVPress(0.9, window_size=4), tokens(20))
    found = places(cache, tokens(20))
    still(len(found) < 4, f"tokens {found} of 20, with a window of 4", "tokens 16 to 19")


def test_entries_are_in_the_order_of_their_scores() -> None:
    """Retained entries are gathered in the order of topk, not of positions."""
    _, cache = prompted(KnormPress(0.5), tokens(20))
    found = places(cache, tokens(20))
    still(found != sorted(found), f"tokens {', '.join(map(str, found[:6]))}, ...", "ascending")


def test_padding_is_scored_like_text() -> None:
    """A row with 10 padding slots gets other logits than alone, since some of them are retained."""
    ids = tokens(20)
    padded = torch.cat([torch.zeros(1, 10, dtype=torch.long), ids], dim=1)
    mask = (padded > 0).long()
    logits = []
    for each, own, start in ((ids, None, 20), (padded, mask, 20)):
        model, cache = prompted(KnormPress(0.5), each, own)
        with torch.no_grad():
            seen = None if own is None else torch.ones(1, held(cache) + 1, dtype=torch.long)
            next_token = torch.tensor([[3]])
            found = model(next_token, past_key_values=cache, attention_mask=seen, position_ids=torch.tensor([[start]]))
        logits.append(found.logits)
    change = off(logits[1], logits[0])
    still(change > 1e-3, f"the next token's logits differ by {change:.2g} of the largest", "0")


def test_a_reference_to_the_rotary_embedding_stays() -> None:
    """Every attention module keeps a reference to the model's rotary embedding after the context."""
    model, _ = prompted(StreamingLLMPress(0.5), tokens(20))
    left = sum(name.endswith("self_attn.rotary_emb") for name, _ in model.named_modules(remove_duplicate=False))
    still(left > 0, f"{left} of {model.config.num_hidden_layers} modules", "0")


def test_a_prompt_of_one_token() -> None:
    """TOVAPress fails on a prompt of one token."""
    with crashing(RuntimeError):
        prompted(TOVAPress(0.5), tokens(1))
