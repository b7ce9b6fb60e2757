"""kakeyalattice: ``KakeyaLatticeCache(variant="e8", q_range=38, ...)``."""

from kakeyalattice.hf import KakeyaLatticeCache

from peers.packages.adapt import QUANTISES, Made, declared


def factory(keep_ratio: float, q_range: int = 38) -> Made:
    """The README's call. It says that bytes are saved only nominally."""
    return Made(
        lambda config: KakeyaLatticeCache(
            variant="e8",
            q_range=q_range,
            num_hidden_layers=config.num_hidden_layers,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            device="cpu",
        )
    )


declared(factory, lambda q_range: {**QUANTISES, "axis": "token", "residual": 0, "simulated": True},
         {"q_range": [38, 10, 152]})  # fmt: skip
