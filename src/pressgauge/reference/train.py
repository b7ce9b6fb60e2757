"""Train the reference models: ``python -m pressgauge.reference.train NAME [--output DIR]``.

On the same machine, with the same versions of torch and transformers, weights are bit-identical: documents are
numbered, the number of threads is fixed, and only deterministic kernels are used.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn.functional import cross_entropy
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from pressgauge.reference.language import BOS, INDEX, PAD, TOKENS, Document, document

THREADS = 2
TOKENS_PER_STEP = 6144
LEAST_KEPT = 0.1
"""Lower bound of the share of entries retained to the end of a document, drawn up to 1."""
TRAINING_SEEDS = 1 << 32
"""First seed of training documents; documents of smaller seeds are unseen by the models."""


@dataclass(frozen=True)
class Round:
    """A round of training with a fresh optimiser.

    Attributes:
        lengths: pairs (step, length): documents before this step have this many tokens; the last step ends the round.
        learning_rate: peak learning rate, after a linear warm-up, with cosine decay to 0.
        warmup: number of warm-up steps.
        forget_from: step from which every second document is read with random evictions; None for never.
        first_document: number of the first document.
        seed: seed of the random evictions.
    """

    lengths: tuple[tuple[int, int], ...]
    learning_rate: float
    warmup: int = 100
    forget_from: int | None = None
    first_document: int = 0
    seed: int = 0

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        return self.lengths[-1][0]


ROUNDS = {
    "reference": (
        Round(((1350, 128), (1950, 384), (2700, 1024), (3000, 2048)), 1.5e-3),
        Round(((250, 512), (350, 1024)), 6e-4, warmup=20, forget_from=0, first_document=10**6, seed=1),
    ),
    "reference-neox": (
        Round(((900, 128), (1240, 384), (1460, 512), (1860, 1024), (2000, 2048)), 1.5e-3, forget_from=900),
        Round(((150, 512), (350, 1024), (400, 2048)), 1e-3, warmup=50, first_document=10**6, seed=1),
        Round(((100, 512), (200, 1024)), 5e-4, warmup=20, forget_from=0, first_document=2 * 10**6, seed=2),
    ),
}


def build(name: str) -> PreTrainedModel:
    """Build an untrained reference model in float32.

    Raises:
        ValueError: if ``name`` is not that of a reference model.
    """
    torch.manual_seed(0)
    shared: dict[str, Any] = {
        "vocab_size": len(TOKENS),
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 2048,
        "bos_token_id": INDEX[BOS],
        "eos_token_id": None,
        "pad_token_id": INDEX[PAD],
        "tie_word_embeddings": False,
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    if name == "reference":
        llama = LlamaConfig(intermediate_size=320, num_key_value_heads=2, rope_parameters=rope, **shared)
        return LlamaForCausalLM(llama)
    if name == "reference-neox":
        rotary = {**rope, "partial_rotary_factor": 1.0}
        return GPTNeoXForCausalLM(GPTNeoXConfig(intermediate_size=512, rope_parameters=rotary, **shared))
    raise ValueError(f"the reference models are 'reference' and 'reference-neox', got {name!r}")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer of the language: one id per word, with ``<bos>`` prepended."""
    tokenizer = Tokenizer(models.WordLevel(vocab=dict(INDEX), unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, INDEX[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, pad_token=PAD, padding_side="left", model_max_length=2048
    )


def forgetful_mask(rows: int, heads: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """Causal mask with random evictions in every second row.

    Its shape is ``[rows, heads, length, length]``, its dtype bool.

    Without it, a model's perplexity jumps at the first evictions, whichever entries they are, and hardly changes after
    that: it measures surprise at gaps. With it, a model loses little but the information in the evicted entries.
    """
    keys = torch.arange(length)
    kept = LEAST_KEPT + (1 - LEAST_KEPT) * torch.rand(rows, 1, 1, generator=generator)
    kept[::2] = 1
    lost = torch.rand(rows, heads, length, generator=generator) >= kept
    age = torch.rand(rows, heads, length, generator=generator)
    lost_at = torch.where(lost, keys + 1 + (age * (length - keys)).floor(), length)
    queries = keys[:, None]
    return (keys <= queries) & (queries < lost_at[:, :, None, :])


def losses(
    model: PreTrainedModel, documents: list[Document], mask: torch.Tensor | None
) -> tuple[torch.Tensor, float, float]:
    """Training loss and progress of a batch.

    Returns:
        Mean NLL in nats, differentiable; and, over the documents read without evictions, the excess of their NLL over
        the exact entropy and the NLL of recalled facts.
    """
    tokens = torch.tensor([text.tokens for text in documents])
    logits = model(tokens, attention_mask=mask, use_cache=False).logits[:, :-1]
    nll = cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(len(documents), -1)
    full = slice(None, None, 1 if mask is None else 2)
    exact = math.fsum(text.entropy for text in documents[full]) / len(documents[full])
    recalled = torch.tensor([text.recalled for text in documents[full]])[:, 1:]
    known = nll.detach()[full]
    return nll.mean(), known.mean().item() - exact, known[recalled].mean().item()


def run_round(model: PreTrainedModel, plan: Round) -> None:
    """Train a model for one round, in place."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    number = TRAINING_SEEDS + plan.first_document
    generator = torch.Generator().manual_seed(plan.seed)
    started = time.perf_counter()
    for step in range(plan.steps):
        length = next(length for end, length in plan.lengths if step < end)
        batch = [document(number + row, length) for row in range(max(1, TOKENS_PER_STEP // length))]
        number += len(batch)
        decay = 0.5 * (1 + math.cos(math.pi * step / plan.steps))
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * min(1.0, (step + 1) / plan.warmup) * decay
        mask = None
        if plan.forget_from is not None and step >= plan.forget_from:
            mask = forgetful_mask(len(batch), model.config.num_attention_heads, length, generator)
        loss, excess, recalled = losses(model, batch, mask)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == plan.steps - 1:
            minutes = (time.perf_counter() - started) / 60
            print(
                f"step {step}/{plan.steps} length {length}: {loss.item():.4f} nats, "
                f"{excess:+.4f} over the exact entropy, recalled facts {recalled:.4f}, {minutes:.1f} min",
                flush=True,
            )


def train(name: str) -> PreTrainedModel:
    """Train a reference model from scratch and return it in evaluation mode."""
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    model = build(name)
    model.train()
    for plan in ROUNDS[name]:
        run_round(model, plan)
    model.eval()
    return model


def main() -> None:
    """Train a reference model and save it with its tokenizer, by default in the package."""
    parser = argparse.ArgumentParser(description="Train a reference model of pressgauge from scratch.")
    parser.add_argument("name", choices=tuple(ROUNDS))
    parser.add_argument("--output", type=Path, help="folder to write to (default: the package's own)")
    arguments = parser.parse_args()
    folder = arguments.output or Path(__file__).parent / arguments.name
    model = train(arguments.name)
    model.save_pretrained(folder)
    if arguments.name == "reference-neox":
        # transformers 5.2 reads the share of rotated dimensions from here, and assumes a quarter where it is missing.
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8")) | {"rotary_pct": 1.0}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    build_tokenizer().save_pretrained(folder)
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
