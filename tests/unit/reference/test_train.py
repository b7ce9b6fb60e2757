"""Training of the reference models is bit-reproducible and lowers the loss, in tiny runs."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from pressgauge.reference import train as module
from pressgauge.reference.language import TOKENS, document
from pressgauge.reference.train import Round, build, build_tokenizer, forgetful_mask, main, run_round, train

ARCHITECTURES = {"reference": "LlamaForCausalLM", "reference-neox": "GPTNeoXForCausalLM"}


@pytest.fixture(autouse=True)
def settings_are_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few short documents and one thread, with process-wide settings restored afterwards."""
    monkeypatch.setattr(module, "THREADS", 1)
    monkeypatch.setattr(module, "TOKENS_PER_STEP", 256)
    tiny = Round(((3, 128),), 1.5e-3), Round(((2, 96),), 1e-3, warmup=1, forget_from=1, first_document=99, seed=1)
    monkeypatch.setattr(module, "ROUNDS", dict.fromkeys(ARCHITECTURES, tiny))
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def loss(model: PreTrainedModel) -> float:
    """Mean NLL of documents not used in training."""
    tokens = torch.tensor([document(seed, 128).tokens for seed in range(8)])
    with torch.no_grad():
        logits = model(tokens, use_cache=False).logits
    return float(cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_same_steps_give_the_same_weights_to_the_bit(name: str) -> None:
    """Training changes the weights, and is bit-reproducible for any state of the global generator."""
    first = train(name).state_dict()
    torch.manual_seed(99)
    second = train(name).state_dict()
    untrained = build(name).state_dict()
    assert first.keys() == second.keys() == untrained.keys()
    for key, weight in first.items():
        assert torch.equal(weight, second[key]), key
    assert any(not torch.equal(weight, untrained[key]) for key, weight in first.items())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_training_lowers_the_loss_on_documents_that_it_never_sees(name: str) -> None:
    """Thirty small steps lower the loss on unseen documents to half a nat below the uniform 5.0."""
    model = build(name)
    before = loss(model)
    run_round(model, Round(((30, 128),), 1.5e-3))
    assert loss(model) < before - 0.5


@pytest.mark.parametrize(("name", "architecture"), ARCHITECTURES.items())
def test_build_gives_the_architecture_that_the_name_stands_for(name: str, architecture: str) -> None:
    """An untrained model is in float32, with the loss of a uniform guess."""
    model = build(name)
    assert type(model).__name__ == architecture
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert model.config.vocab_size == len(TOKENS)
    assert loss(model) == pytest.approx(torch.tensor(float(len(TOKENS))).log().item(), abs=0.2)


def test_a_forgetful_memory_is_causal_and_never_restores_keys() -> None:
    """Masks are full in every first row; in every second one each key is visible from its own query on, for some
    time."""
    mask = forgetful_mask(4, 3, 40, torch.Generator().manual_seed(0))
    causal = torch.ones(40, 40, dtype=torch.bool).tril()
    assert torch.equal(mask[::2], causal.expand(2, 3, 40, 40))
    lossy = mask[1::2]
    assert not (lossy & ~causal).any()
    assert lossy.diagonal(dim1=2, dim2=3).all()
    later = lossy.int().diff(dim=2)
    assert int((later == 1).sum()) == 2 * 3 * 39  # each key appears once, the first in the first query
    assert (later == -1).any()


def test_training_documents_are_new_to_every_test() -> None:
    """Seeds of training documents are far above those of tests and measurements."""
    assert module.TRAINING_SEEDS == 2**32


def test_the_llama_shares_each_kv_head_between_two_query_heads() -> None:
    """The reference Llama has grouped queries, as most models do."""
    config = build("reference").config
    assert config.num_attention_heads == 2 * config.num_key_value_heads


@pytest.mark.parametrize("name", ["", "llama", "reference-neo"])
def test_an_unknown_name_is_refused(name: str) -> None:
    """An unknown name is refused with the known ones."""
    with pytest.raises(ValueError, match=f"the reference models are 'reference' and 'reference-neox', got '{name}'"):
        build(name)


@pytest.mark.parametrize("length", [2, 700])
def test_the_tokenizer_gives_a_documents_text_its_token_ids(length: int) -> None:
    """The tokenizer gives ``<bos>`` and one id per word, and decodes them again."""
    tokenizer = build_tokenizer()
    text = document(7, length)
    ids = tokenizer(text.text).input_ids
    assert tuple(ids) == text.tokens
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == text.text


def test_the_tokenizer_pads_on_the_left() -> None:
    """The tokenizer pads on the left, as presses require."""
    batch = build_tokenizer()(["the river runs .", "recall lesu"], padding=True)
    assert batch["attention_mask"] == [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert batch["input_ids"][1][:2] == [0, 0]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_main_writes_a_folder_that_transformers_loads(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``main`` writes a folder with the trained weights as safetensors and the tokenizer."""
    folder = tmp_path / "trained"
    monkeypatch.setattr(sys, "argv", ["train", name, "--output", str(folder)])
    main()
    assert f"wrote {folder}" in capsys.readouterr().out
    assert (folder / "model.safetensors").is_file()
    loaded = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    expected = train(name).state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for key, weight in loaded.state_dict().items():
        assert torch.equal(weight, expected[key]), key
    text = document(8, 50)
    assert tuple(AutoTokenizer.from_pretrained(folder)(text.text).input_ids) == text.tokens


def test_main_refuses_an_unknown_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown name is refused before training."""
    monkeypatch.setattr(sys, "argv", ["train", "gpt"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "invalid choice: 'gpt'" in capsys.readouterr().err
