"""Loading models by name: what is loaded, refused, and never run."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from pressgauge.models import DTYPES, load, location, pick_device
from pressgauge.reference.language import document

FOLDER = Path(location("reference"))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the reference model's folder, to be damaged."""
    return Path(shutil.copytree(FOLDER, tmp_path / "model"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_model_loads_in_every_dtype(dtype: str) -> None:
    """The reference model loads in every dtype, on the CPU and in evaluation mode."""
    model, tokenizer = load("reference", dtype=dtype)
    assert {(weight.dtype, weight.device.type) for weight in model.parameters()} == {(getattr(torch, dtype), "cpu")}
    assert not model.training
    text = document(1, 40)
    ids = tokenizer(text.text, return_tensors="pt").input_ids
    assert ids.tolist() == [list(text.tokens)]
    with torch.no_grad():
        logits = model(ids).logits
    assert logits.dtype == getattr(torch, dtype)
    assert bool(logits.isfinite().all())


def test_a_folder_loads_like_the_name() -> None:
    """The folder of the reference model loads the same model as its name."""
    by_name, by_path = load("reference")[0].state_dict(), load(str(FOLDER))[0].state_dict()
    assert by_name.keys() == by_path.keys()
    assert all(torch.equal(weight, by_path[key]) for key, weight in by_name.items())


def test_location_does_not_change_other_names() -> None:
    """Folders and names on the hub are not changed."""
    assert [location(name) for name in ("org/model", "./reference", "")] == ["org/model", "./reference", ""]


@pytest.mark.parametrize("dtype", ["int8", "float", "torch.float32", ""])
def test_an_unknown_dtype_is_refused(dtype: str) -> None:
    """An unknown dtype is refused with the known ones."""
    with pytest.raises(ValueError, match=f"dtype must be one of float64, float32, bfloat16, float16, got '{dtype}'"):
        load("reference", dtype=dtype)


@pytest.mark.parametrize("name", ["/no/such/folder", "not a name!", ""])
def test_an_unknown_model_is_refused(name: str) -> None:
    """An unknown model is refused with the kinds of names."""
    with pytest.raises(ValueError, match=f"model '{name}' could not be loaded: give reference or reference-neox"):
        load(name)


def test_weights_that_are_not_safetensors_are_refused(copy: Path) -> None:
    """Pickled weights are refused, since loading them can run code."""
    model, _ = load("reference")
    (copy / "model.safetensors").unlink()
    torch.save(model.state_dict(), copy / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"could not be loaded: give .* a folder with .* \*\.safetensors") as refused:
        load(str(copy))
    assert "model.safetensors" in str(refused.value.__cause__)


def test_safetensors_are_preferred_to_pickles(copy: Path) -> None:
    """With safetensors present, a pickle is not opened."""
    (copy / "pytorch_model.bin").write_bytes(b"not a pickle")
    assert type(load(str(copy))[0]).__name__ == "LlamaForCausalLM"


def damage_config(folder: Path) -> None:
    """A configuration that is not JSON."""
    (folder / "config.json").write_text("{")


def unknown_type(folder: Path) -> None:
    """An architecture unknown to transformers."""
    (folder / "config.json").write_text('{"model_type": "no-such-architecture"}')


def not_causal(folder: Path) -> None:
    """An architecture that is not a causal model."""
    (folder / "config.json").write_text('{"model_type": "t5"}')


def no_tokenizer(folder: Path) -> None:
    """Weights without a tokenizer."""
    for path in folder.glob("tokenizer*"):
        path.unlink()


def pointer(folder: Path) -> None:
    """A pointer file, as after a clone without git-lfs."""
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 2223\n")


def truncated(folder: Path) -> None:
    """A truncated file, as after an interrupted download."""
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def other_shapes(folder: Path) -> None:
    """A configuration that does not fit the weights."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))


@pytest.mark.parametrize(
    "damage", [damage_config, unknown_type, not_causal, no_tokenizer, pointer, truncated, other_shapes]
)
def test_a_folder_that_cannot_be_loaded_is_refused_in_one_sentence(copy: Path, damage: object) -> None:
    """An invalid folder raises a ValueError of a few lines that names the model."""
    assert callable(damage)
    damage(copy)
    with pytest.raises(ValueError, match="could not be loaded: give reference or reference-neox, a folder") as refused:
        load(str(copy))
    assert repr(str(copy)) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600 + len(str(copy))


def with_own_code(folder: Path, marker: Path, model_type: str) -> None:
    """Add code to the folder that leaves a marker when it runs."""
    (folder / "own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(marker)!r}).touch()\n"
        f"class Config(LlamaConfig):\n    model_type = {model_type!r}\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": model_type, "architectures": ["Model"]}
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists once a model's own code has run. Code is copied only below the test's folder."""
    modules = tmp_path / "modules"
    modules.mkdir()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(modules))
    monkeypatch.syspath_prepend(str(modules))
    return tmp_path / "was-here"


def test_a_models_own_code_is_not_run_by_default(copy: Path, marker: Path) -> None:
    """An architecture known only to the folder's code is refused."""
    with_own_code(copy, marker, "own-architecture")
    with pytest.raises(ValueError, match="could not be loaded"):
        load(str(copy))
    assert not marker.exists()


def test_a_models_own_code_is_not_run_in_place_of_a_known_architecture(copy: Path, marker: Path) -> None:
    """For a known architecture, transformers' class is used."""
    with_own_code(copy, marker, "llama")
    model, _ = load(str(copy))
    assert type(model).__module__.startswith("transformers.models.llama")
    assert not marker.exists()


def test_a_models_own_code_is_run_when_it_is_trusted(copy: Path, marker: Path) -> None:
    """With trust, the code runs, so the two tests above can fail."""
    with_own_code(copy, marker, "own-architecture")
    model, _ = load(str(copy), trust_remote_code=True)
    assert type(model).__name__ == "Model"
    assert marker.exists()


# Devices


def test_auto_is_the_accelerator_if_available(monkeypatch: pytest.MonkeyPatch) -> None:
    """``auto`` is the available accelerator of any kind."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    assert pick_device("auto") == torch.device("mps")


def test_auto_is_the_cpu_without_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """``auto`` is the CPU without an available accelerator, even if torch was built for one."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert pick_device("auto") == torch.device("cpu")


def test_a_device_is_picked_by_its_name() -> None:
    """A device is selected by name; the CPU is always available."""
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "cpu0", "meta", "cpu:1", "hpu", "xla", "mkldnn"])
def test_a_missing_device_is_refused(name: str) -> None:
    """A device that is missing or cannot compute is refused with the available ones, by its name and for a model."""
    sentence = f"device must be auto, cpu or an accelerator of this machine, got '{name}'"
    with pytest.raises(ValueError, match=sentence):
        pick_device(name)
    with pytest.raises(ValueError, match=sentence):
        load("reference", device=name)
