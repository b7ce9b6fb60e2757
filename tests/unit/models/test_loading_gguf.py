"""GGUF files as models: the numbers of the same weights in safetensors, and what is refused."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from pressgauge import KnormPress, perplexity
from pressgauge.cli import app
from pressgauge.models import check_model_name, gguf_file, load, loading, location

TOKENS = [*sorted(ByteLevel.alphabet()), "th", "qu", "<s>"]
TEXT = "The quick brown fox jumps over the lazy dog, and over it again. " * 3


@pytest.fixture(scope="module")
def model() -> Any:
    """A tiny Llama with grouped-query attention, of random weights, and a token for each byte and two pairs."""
    torch.manual_seed(0)
    size: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "vocab_size": len(TOKENS),
    }
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    config = LlamaConfig(**size, **heads, tie_word_embeddings=False, initializer_range=0.2)
    return LlamaForCausalLM(config).eval()


def interleaved(weight: numpy.ndarray, heads: int) -> numpy.ndarray:
    """Rows of a query or key projection in llama.cpp's order, in which the two parts of a rotated pair are adjacent."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write(path: Path, model: Any, kind: gguf.GGMLQuantizationType, without: str = "none") -> Path:
    """Write a Llama as a GGUF file with matrices of this type, and return its path."""
    config, weights = model.config, {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    file = gguf.GGUFWriter(path, "llama")
    file.add_name("tiny")
    file.add_block_count(config.num_hidden_layers)
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_rope_freq_base(config.rope_parameters["rope_theta"])
    file.add_rope_dimension_count(config.head_dim)
    file.add_vocab_size(config.vocab_size)
    file.add_tokenizer_model("gpt2")
    file.add_token_list(TOKENS)
    file.add_token_types([gguf.TokenType.NORMAL] * (len(TOKENS) - 1) + [gguf.TokenType.CONTROL])
    file.add_token_merges(["t h", "q u"])
    file.add_bos_token_id(len(TOKENS) - 1)
    file.add_eos_token_id(len(TOKENS) - 1)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    of_layer = {
        **{f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"},
        **{"self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"},
        **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
    }
    for index in range(config.num_hidden_layers):
        names |= {f"model.layers.{index}.{ours}": f"blk.{index}.{its}" for ours, its in of_layer.items()}
    for ours, its in names.items():
        weight = weights[f"{ours}.weight"]
        if ours.endswith("q_proj"):
            weight = interleaved(weight, config.num_attention_heads)
        elif ours.endswith("k_proj"):
            weight = interleaved(weight, config.num_key_value_heads)
        if its == without:
            continue
        if weight.ndim == 2 and kind != gguf.GGMLQuantizationType.F32:
            file.add_tensor(f"{its}.weight", gguf.quantize(weight, kind), raw_dtype=kind)
        else:
            file.add_tensor(f"{its}.weight", weight)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


@pytest.fixture(scope="module")
def path(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a GGUF file in float32."""
    return write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model, gguf.GGMLQuantizationType.F32)


def test_a_file_has_the_numbers_of_its_weights(model: Any, path: Path) -> None:
    """Logits and perplexities of a GGUF file are those of the model that was written, and its tokenizer round-trips."""
    found, tokenizer = load(str(path), dtype="float64")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    ids = tokenizer(TEXT, return_tensors="pt", add_special_tokens=False).input_ids
    assert ids.shape[1] == len(TEXT) - TEXT.count("th") - TEXT.count("qu")
    assert tokenizer.decode(ids[0]) == TEXT
    exact = LlamaForCausalLM(model.config).eval().double()
    exact.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert float((found(ids).logits - exact(ids).logits).abs().max()) < 1e-12
    press = KnormPress(0.5, prune_after=16)
    assert perplexity(found, ids, press).ppl == pytest.approx(perplexity(exact, ids, press).ppl, rel=1e-12)


def test_packed_weights_are_dequantised(model: Any, tmp_path: Path) -> None:
    """Weights of 8 bits become those that the package gguf says they are, in the dtype that is asked for."""
    kind = gguf.GGMLQuantizationType.Q8_0
    found, _ = load(str(write(tmp_path / "tiny.gguf", model, kind)), dtype="float64")
    weight = model.model.layers[1].mlp.up_proj.weight.detach().numpy()
    expected = torch.from_numpy(gguf.dequantize(gguf.quantize(weight, kind), kind)).double()
    loaded = found.model.layers[1].mlp.up_proj.weight
    assert loaded.dtype == torch.float64
    assert torch.equal(loaded, expected)
    assert not torch.equal(loaded, torch.from_numpy(weight).double())


def test_a_file_is_measured_by_its_path(path: Path, tmp_path: Path) -> None:
    """``--model file.gguf`` measures the file, and its rows say so."""
    text, rows = tmp_path / "text.txt", tmp_path / "rows.json"
    text.write_text(TEXT)
    sizes = ("--tokens", "64", "--samples", "1", "--prune-after", "16", "--keep-ratios", "0.5")
    where = ("--model", str(path), "--text", str(text), "--json", str(rows))
    result = CliRunner().invoke(app, ["measure", *where, *sizes, "--press", "knorm", "--no-random"])
    assert result.exit_code == 0, result.output
    content = json.loads(rows.read_text())["rows"]
    assert [(row["model"], row["keep_ratio"]) for row in content] == [(str(path), 1.0), (str(path), 0.5)]


def test_names_of_files(path: Path) -> None:
    """A file is a local path or a hub's name with a file; a folder and a name have none."""
    assert (location(str(path)), gguf_file(str(path))) == (str(path.parent), "tiny.gguf")
    assert (location("owner/name/q8/tiny.gguf"), gguf_file("owner/name/q8/tiny.gguf")) == ("owner/name", "q8/tiny.gguf")
    assert (location("tiny.gguf"), gguf_file("tiny.gguf")) == (".", "tiny.gguf")
    assert gguf_file("reference") is None
    assert gguf_file(str(path.parent)) is None
    check_model_name(str(path))
    check_model_name("owner/name/tiny.gguf")


def test_a_missing_file_is_refused(path: Path) -> None:
    """A file that is not in its folder is refused before anything is loaded."""
    with pytest.raises(ValueError, match=r"could not be loaded: give .* a \*\.gguf file, .*\(there is no such file\)"):
        check_model_name(str(path.with_name("other.gguf")))


def test_missing_weights_are_refused(model: Any, tmp_path: Path) -> None:
    """A file without one of its tensors is refused with the name of the weight."""
    partial = write(tmp_path / "tiny.gguf", model, gguf.GGMLQuantizationType.F32, without="blk.1.ffn_up")
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load(str(partial))


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64, b"PK\x03\x04" + bytes(99)])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    """A file that is no GGUF file, or a damaged one, is refused in one sentence that names it."""
    (tmp_path / "tiny.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=r"tiny\.gguf' could not be loaded"):
        load(str(tmp_path / "tiny.gguf"))


def test_a_truncated_file_is_refused(path: Path, tmp_path: Path) -> None:
    """A file of which the end is missing is refused."""
    whole = path.read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"tiny\.gguf' could not be loaded"):
        load(str(tmp_path / "tiny.gguf"))


def test_missing_packages_are_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the packages that read GGUF files, the error says which to install."""
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"GGUF files need accelerate and gguf: pip install 'pressgauge\[gguf\]'"):
        load(str(path))
