"""What a layer's attention does to query-key products besides scaling them: a softcap, and sink logits.

Shapes: B batch, H query heads, K KV heads, q queries, N keys.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_SDPA = "transformers.integrations.sdpa_attention"


@dataclass(frozen=True, eq=False)
class Softmax:
    """Softmax over the scaled products of a query and its keys.

    Attributes:
        softcap: logits become ``softcap * tanh(logits / softcap)``, before the mask (Gemma 2, arXiv 2408.00118, section
            2); None for no softcap.
        sinks: ``[H]``, a logit per query head that takes part in the softmax and attends to nothing (gpt-oss, arXiv
            2508.10925, section 2.3); None for no sinks.
    """

    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether there is neither."""
        return self.softcap is None and self.sinks is None

    def capped(self, logits: Tensor) -> Tensor:
        """Logits of any shape after the softcap."""
        return logits if self.softcap is None else logits.div(self.softcap).tanh_().mul_(self.softcap)

    def grouped_sinks(self, logits: Tensor, heads: int) -> Tensor | None:
        """Sink logits ``[K, H / K]`` in the dtype and on the device of ``logits``; None for no sinks."""
        if self.sinks is None:
            return None
        return self.sinks.detach().to(logits.device, logits.dtype).view(heads, -1)

    def weights(self, logits: Tensor) -> Tensor:
        """Attention weights of masked logits ``[B, K, H / K, q, N]``; what the sinks take is missing from their sum."""
        sinks = self.grouped_sinks(logits, logits.shape[1])
        if sinks is None:
            return logits.softmax(dim=-1)
        total = logits.logsumexp(dim=-1, keepdim=True)
        return (logits - torch.logaddexp(total, sinks[..., None, None])).exp_()

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Attention output ``[B, K, n, D]`` without sinks, and log-sum-exp ``[B, K, n]`` of the logits.

        Args:
            query, key, value: of the same B and K, with n queries.
            scale: scaling factor of the query-key products.
            bias: ``[B, K, n, N]``, minus infinity where a key is masked; None if none is.
        """
        wide = torch.promote_types(query.dtype, torch.float32)
        logits = self.capped(query.to(wide) @ key.to(wide).mT * scale)
        if bias is not None:
            logits = logits + bias
        total = logits.logsumexp(dim=-1)
        return (logits - total[..., None]).exp() @ value.to(wide), total

    def share(self, output: Tensor, total: Tensor, heads: int) -> Tensor:
        """Attention output without the share of the sinks.

        Args:
            output: ``[B, K, n, D]``, attention without sinks; the n rows are those of ``H / K`` query heads in order.
            total: ``[B, K, n]``, log-sum-exp of the logits.
            heads: K.
        """
        sinks = self.grouped_sinks(total, heads)
        if sinks is None:
            return output
        each = sinks.repeat_interleave(total.shape[2] // sinks.shape[1], dim=1)
        return output * (total - each).sigmoid()[..., None].to(output.dtype)


PLAIN = Softmax()


def softmax_of(own: Callable[..., Any], kwargs: Mapping[str, Any]) -> Softmax:
    """The softmax of an attention call.

    Args:
        own: the model's attention function.
        kwargs: further arguments of the call.
    """
    softcap, sinks = kwargs.get("softcap"), kwargs.get("s_aux")
    if softcap is None and sinks is None:
        return PLAIN
    # A function that does not name a softcap ignores it, and transformers' sdpa function ignores sinks as well.
    if "softcap" not in inspect.signature(own).parameters:
        softcap = None
    return Softmax(softcap, None if inspect.unwrap(own).__module__ == _SDPA else sinks)
