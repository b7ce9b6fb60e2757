"""turbokv: ``TurboQuantCache(model.config, nbits=4, skip_layers=skip)``, a ``QuantizedLayer`` of transformers."""

from typing import Any

from turboquant import TurboQuantCache

from peers.packages.adapt import QUANTISES, declared


def factory(keep_ratio: float, model: Any, nbits: int = 4) -> Any:
    """The README's call, with no layer left out, as for a model without outlier layers."""
    return TurboQuantCache(model.config, nbits=nbits, residual_length=8, device="cpu", skip_layers=set())


# "MSE distortion <= 0.009 at 4 bits", "<= 0.117 at 2 bits".
declared(
    factory,
    lambda nbits: {**QUANTISES, "bits": nbits, "error": {4: 0.009, 2: 0.117}[nbits] ** 0.5},
    {"nbits": [4, 2]},
)
