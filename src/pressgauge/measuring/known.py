"""Models whose NLL of any text, under any eviction history, is a formula: the bag and the chain."""

import copy
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = tuple("ka lo mira ne oru pa quin re sol tu una vex wi xan yo zeta".split())
PAD, BOS = 0, 1
"""Ids of the padding token and of the beginning of a text, which is also its end."""
VOCABULARY = ("<pad>", "<bos>", *WORDS)
V = len(VOCABULARY)
HEADS, GROUP, LAYERS = 2, 2, 2
"""KV heads, query heads per KV head, and layers. Only the last layer adds to the residual stream."""
BETA = 3.0
WEIGHTS = tuple(1 + token / (8 * V) for token in range(V))
"""Factor of a token's value, so that no two tokens are equally likely."""


def word_tokenizer(words: Sequence[str], **special: str) -> Any:
    """A tokenizer of one token per word that adds no special token by itself and pads on the left.

    Args:
        words: the vocabulary; the first is the padding token, which also stands for unknown words.
        special: further special tokens by name.
    """
    level = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[0]))
    level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=level, pad_token=words[0], padding_side="left", **special)


@cache
def tokenizer() -> Any:
    """Tokenizer of the known models."""
    return word_tokenizer(VOCABULARY, bos_token="<bos>", eos_token="<bos>")


def _config(size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=V,
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS * GROUP,
        num_key_value_heads=HEADS,
        head_dim=V,
        rms_norm_eps=0.0,
        max_position_embeddings=4096,
        bos_token_id=BOS,
        eos_token_id=BOS,
        pad_token_id=PAD,
    )


@cache
def _bag() -> Any:
    config = _config(2 * V)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model: Any = LlamaForCausalLM(config)
        keys = torch.randn(LAYERS, HEADS, V, V).div(V**0.5) * torch.randn(LAYERS, HEADS, 1, V).exp()
    one_hot = torch.eye(V, 2 * V)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(one_hot)
        # RMSNorm scales a unit vector of 2V numbers by the root of 2V.
        values = torch.diag(torch.tensor(WEIGHTS)) @ one_hot / (2 * V) ** 0.5
        for index, layer in enumerate(model.model.layers):
            attention = layer.self_attn
            attention.q_proj.weight.zero_()
            attention.k_proj.weight.copy_((keys[index] @ one_hot).flatten(0, 1))
            attention.v_proj.weight.copy_(values.repeat(HEADS, 1))
            attention.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        heads = HEADS * GROUP
        attention.o_proj.weight[V:].copy_(torch.eye(V).repeat(1, heads) / heads)
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, V:].copy_(BETA * torch.eye(V))
    return model.eval()


def bag() -> Any:
    """A new copy of the bag: a Llama whose next token depends only on which tokens its last layer holds.

    Queries are zero, so that attention is uniform; values are one-hot vectors of the token, times its weight. With f
    the frequencies of the tokens held, averaged over heads and weighted, the logits are
    ``BETA * f / sqrt((1 + sum f^2) / 2V)``. Norms of keys are random per token, so that a press has something to rank.
    """
    return copy.deepcopy(_bag())


def broken_bag(token: int) -> Any:
    """A bag whose logits are infinite, so that their NLL is NaN, for the queries of a token and for no others."""
    model = bag()
    with torch.no_grad():
        model.lm_head.weight[:, token] = torch.finfo(torch.float32).max
    return model


def frequencies(tokens: Sequence[int]) -> list[float]:
    """Weighted frequencies ``[V]`` of a bag in which every head holds these tokens."""
    counts = [0.0] * V
    for token in tokens:
        counts[token] += WEIGHTS[token] / len(tokens)
    return counts


def logits_of(held: Sequence[float]) -> list[float]:
    """Logits ``[V]`` of a query of the bag that reads these weighted frequencies."""
    size = math.sqrt((1 + math.fsum(f * f for f in held)) / (2 * V))
    return [BETA * f / size for f in held]


def cross_entropy(logits: Sequence[float], token: int) -> float:
    """NLL of a token, in nats, under logits."""
    top = max(logits)
    return top + math.log(math.fsum(math.exp(logit - top) for logit in logits)) - logits[token]


def nll_of(held: Sequence[float], token: int) -> float:
    """NLL of a token, in nats, for a query of the bag that reads these weighted frequencies."""
    return cross_entropy(logits_of(held), token)


# The chain


@cache
def transitions() -> tuple[tuple[float, ...], ...]:
    """Probabilities of a Markov chain over the vocabulary: from each token, of each next one."""
    draw = random.Random(3).random
    weights = [[0.01 + draw() ** 3 for _ in range(V)] for _ in range(V)]
    return tuple(tuple(weight / math.fsum(row) for weight in row) for row in weights)


@cache
def _chain() -> Any:
    config = _config(4 * V)
    with torch.random.fork_rng():
        torch.manual_seed(12)
        model: Any = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(V, 4 * V))
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, :V].copy_(torch.tensor(transitions()).log().T / (4 * V) ** 0.5)
    return model.eval()


def chain() -> Any:
    """A new copy of the chain: a Llama whose distribution is a Markov chain's, whatever its cache holds."""
    return copy.deepcopy(_chain())


def chain_nll(ids: Sequence[int]) -> list[float]:
    """NLL of all tokens but the first under the chain, in nats."""
    return [-math.log(transitions()[before][token]) for before, token in pairwise(ids)]


# Texts


@dataclass(frozen=True)
class Text:
    """A text of words, and its tokens, without special ones."""

    text: str
    ids: tuple[int, ...]

    @property
    def tensor(self) -> Tensor:
        """``[1, T]``."""
        return torch.tensor([self.ids])


@cache
def text_of(length: int, seed: int = 0) -> Text:
    """A text in which few words are frequent at a time, and no three tokens in a row occur twice."""
    draw = random.Random(1000 * seed + 7)
    ids: list[int] = []
    used: set[tuple[int, ...]] = set()
    topic: list[int] = []
    while len(ids) < length:
        if len(ids) % 12 == 0:
            topic = draw.sample(range(2, V), 6)
        token = draw.choice(topic) if draw.random() < 0.8 else draw.randrange(2, V)
        three = (*ids[-2:], token)
        if len(three) == 3 and three in used:
            topic = draw.sample(range(2, V), 6)
            continue
        used.add(three)
        ids.append(token)
    return Text(" ".join(VOCABULARY[token] for token in ids), tuple(ids))
