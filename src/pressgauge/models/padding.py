"""What padding does to a model: some count it, recurrent layers take it in, and eager attention may give NaN."""

import torch
from transformers import PretrainedConfig, PreTrainedModel

from pressgauge.models import interface


def has_recurrent_layers(config: PretrainedConfig) -> bool:
    """Whether a model has layers with a recurrence, alone or besides attention."""
    classes = interface.layer_classes(config)
    return any(interface.keeps_states(layer) or not interface.caches_keys(layer) for layer in classes)


def counts_padding(model: PreTrainedModel) -> str | None:
    """Why a model decodes padded rows unlike each row alone, whatever it is passed; None if it may not."""
    if any(map(interface.selects_keys, interface.layer_classes(model.config))):
        return "selects keys by their columns and counts padding"
    if not interface.takes_positions(interface.decoder_of(model)):
        return "numbers positions itself and counts padding"
    if model.config.model_type == "git":
        return "takes the first columns of an attention mask for those of an image"
    return None


def computes_behind_padding(model: PreTrainedModel) -> bool:
    """Whether the logits of a token that follows padding are finite.

    Eager attention masks a padding query's keys by the smallest number of the model's dtype, and mostly computes its
    softmax in float32, where that of float64 is minus infinity, and the output NaN.
    """
    if model.dtype != torch.float64 or interface.decoder_of(model).config._attn_implementation != "eager":
        return True
    ids = torch.zeros((1, 2), dtype=torch.long, device=model.device)
    mask = torch.tensor([[0, 1]], device=model.device)
    with torch.no_grad():
        return bool(interface.feed(model, ids, {}, mask, ids)[:, -1].isfinite().all())
