"""Answers to a task's prompts with a compressed cache."""

import math
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pressgauge.cache import PressedCache
from pressgauge.cache.layer import storage_nbytes
from pressgauge.decoder import generate
from pressgauge.history import first_evictions
from pressgauge.models.heads import split_of
from pressgauge.models.placed import input_device
from pressgauge.presses.base import Press
from pressgauge.tasks.fitting import Prompts
from pressgauge.tasks.scoring import recall


@dataclass(frozen=True)
class Answers:
    """Answers to all prompts of a task.

    Attributes:
        texts: the answers.
        recalls: share of the hidden strings in each answer.
        answer_tokens: generated tokens of all answers.
        affected_tokens: those of them whose query came after an eviction.
        evictions: entries evicted over all layers, KV heads and samples.
        kv_bytes: memory of the entries held at the end of all answers.
        compressing: whether a press with ``keep_ratio`` below 1 was given.
    """

    texts: tuple[str, ...]
    recalls: tuple[float, ...]
    answer_tokens: int
    affected_tokens: int
    evictions: int
    kv_bytes: int
    compressing: bool

    @property
    def recall(self) -> float:
        """Mean recall of the samples."""
        return math.fsum(self.recalls) / len(self.recalls)

    @property
    def vacuous(self) -> bool:
        """Whether the result is meaningless: compressing, yet no token of an answer was affected."""
        return self.compressing and not self.affected_tokens


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, press: Press | None
) -> Answers:
    """Greedy answers to prompts, one by one, so that memory is that of one context.

    The prompt is fed in one pass, question included, except for its last token. That one is fed after the press has
    evicted, so that every token of the answer is predicted from the compressed cache.
    """
    texts, recalls = [], []
    generated = affected = evictions = kv_bytes = 0
    for prompt in prompts.prompts:
        ids = torch.tensor([prompt.ids], device=input_device(model))
        cache = generate(model, ids[:, :-1], press, 1).cache
        result = generate(model, ids, press, prompts.answer_tokens, cache=cache)
        texts.append(str(tokenizer.decode(result.tokens[0, ids.shape[1] :].tolist(), skip_special_tokens=True)))
        recalls.append(recall(texts[-1], prompt.sample.hidden))
        generated += result.generated
        if isinstance(cache, PressedCache):
            first = int(first_evictions(cache.evicted_at))
            # The first token is predicted by the query of the prompt's last token, in column T - 1.
            affected += max(0, result.generated - max(0, first - (ids.shape[1] - 1)))
            evictions += cache.evictions
            kv_bytes += cache.nbytes
        else:
            kv_bytes += sum(storage_nbytes(layer) for layer in cache.layers)
    if split := split_of(model.config):
        evictions, kv_bytes = split.total(evictions), split.total(kv_bytes)
    compressing = press is not None and press.keep_ratio < 1
    return Answers(tuple(texts), tuple(recalls), generated, affected, evictions, kv_bytes, compressing)
