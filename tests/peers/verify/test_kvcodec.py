"""kvcodec 0.1.0: ``SeqCodec``, a codec of one layer's tensors."""

from kvcodec import SeqCodec

from peers.verify.plain import alive, entries, still


def test_less_is_saved_than_claimed() -> None:
    """The ratio leaves out scales and norms, which are stored in float32."""
    keys, values = (each[0] for each in entries(256))
    codec = SeqCodec()
    packed = codec.compress(keys, values)
    claimed = codec.metrics(keys, values, packed)["compression_ratio"]
    holds = (keys.numel() + values.numel()) * 2 / alive(packed)
    still(claimed > 1.1 * holds, f"{claimed:.2f}x claimed, {holds:.2f}x of float16 held", "the same")
