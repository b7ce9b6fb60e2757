"""kakeyalattice: ``KakeyaLatticeCache(variant="e8", q_range=38, ...)``."""

from typing import Any

from kakeyalattice.hf import KakeyaLatticeCache

from peers.packages.adapt import QUANTISES, declared


def factory(keep_ratio: float, model: Any, q_range: int = 38) -> Any:
    """The README's call. It says that bytes are saved only nominally."""
    return KakeyaLatticeCache(
        variant="e8",
        q_range=q_range,
        num_hidden_layers=model.config.num_hidden_layers,
        head_dim=model.config.head_dim,
        device="cpu",
    )


declared(factory, lambda q_range: {**QUANTISES, "residual": 0, "simulated": True},
         {"q_range": [38, 10, 152]})  # fmt: skip
