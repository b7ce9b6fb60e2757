"""turboquant: ``TurboQuantCache(bits=4)``. Its window of 128 tokens is no option of the cache."""

from turboquant import TurboQuantCache

from peers.packages.adapt import QUANTISES, Made, declared


def factory(keep_ratio: float, bits: int = 4) -> Made:
    """The README's call."""
    return Made(lambda config: TurboQuantCache(bits=bits))


declared(
    factory,
    lambda bits: {
        **QUANTISES,
        "bits": bits,
        "axis": "token",
        "residual": 128,
        "reports": {"bytes": lambda cache, _: cache.memory_usage_bytes()["total_bytes"]},
    },
    {"bits": [4, 3]},
)
