"""Models of the timed shapes, with random weights, since times do not depend on weights."""

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel


def pythia() -> PreTrainedModel:
    """A GPT-NeoX of Pythia-70M's shape, in float32."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=50304,
        hidden_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=2048,
        max_position_embeddings=2048,
    )
    model: PreTrainedModel = GPTNeoXForCausalLM(config).eval()
    return model


def llama(layers: int = 6) -> PreTrainedModel:
    """A Llama of the same width, with a small vocabulary and a long context, in float32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        intermediate_size=1408,
        max_position_embeddings=65536,
    )
    model: PreTrainedModel = LlamaForCausalLM(config).eval()
    return model


def tokens(model: PreTrainedModel, count: int) -> torch.Tensor:
    """``[1, count]`` random token ids."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, model.config.vocab_size, (1, count), generator=generator)
