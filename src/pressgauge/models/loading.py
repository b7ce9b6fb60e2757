"""Loading of models by name: bundled reference models, local folders, or the hub."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from pressgauge.errors import is_out_of_memory
from pressgauge.models import check_dtype, gguf_file, heads, location, not_loaded, placed
from pressgauge.models.checks import (
    check_config,
    check_files,
    check_loaded,
    check_tokenizer,
    check_tokenizer_file,
    read_object,
)

HUB_TIMEOUT = 2.0
"""Seconds to wait for the hub before falling back to its local cache."""


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is the accelerator if available, else the CPU.

    Raises:
        ValueError: if this machine has no such device.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        with warnings.catch_warnings():
            # Names that torch deprecates are refused below.
            warnings.simplefilter("ignore")
            device = torch.device(name)
            # Some devices hold tensors and compute nothing, such as meta.
            works = bool((torch.ones(1, device=device) + 1).item() == 2) and not (device.type == "cpu" and device.index)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):
        works = False
    if not works:
        raise ValueError(f"device must be auto, cpu or an accelerator of this machine, got {name!r}")
    return device


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Convert errors in loading a model to a ``ValueError`` of one sentence, except those of memory."""
    verbosity = transformers_logging.get_verbosity()
    # Warnings of transformers repeat in many lines what the sentence says.
    transformers_logging.set_verbosity_error()
    try:
        yield
    except Exception as error:
        # Files of a model can make transformers fail in any way.
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        if not isinstance(error, OSError | ValueError | RuntimeError):
            reason = f"{type(error).__name__}: {reason}"
        if len(reason) > 300:
            reason = reason[:300] + "..."
        raise not_loaded(name, reason) from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def _hub_answers(url: str) -> bool:
    """Whether the hub answers a single request.

    transformers would retry six times in 23 seconds for a file that is not in the cache.
    """
    try:
        get_hf_file_metadata(url, timeout=HUB_TIMEOUT)
    except HfHubHTTPError:
        return True  # no such model, or no access: transformers has the better message
    except Exception:
        # Errors of httpx or httpx2, depending on the huggingface_hub release, share no narrower class.
        return False
    return True


def _only_cached(name: str) -> bool:
    """Whether to load from the hub's local cache only, since the hub does not answer.

    False for a folder.

    Raises:
        ValueError: if ``name`` is neither a folder nor a valid hub name, or the hub does not answer and the model is
            not in the cache.
    """
    if Path(location(name)).is_dir():
        return False
    file = gguf_file(name) or "config.json"
    try:
        url = hf_hub_url(location(name), file)
    except HFValidationError:
        raise ValueError("there is no such folder, and no name on the hub has this form") from None
    if _hub_answers(url):
        return False
    if not isinstance(try_to_load_from_cache(location(name), file), str):
        raise ValueError("there is no such folder, the hub does not answer, and its cache does not have the model")
    return True


def load_parts(name: str, *, trust_remote_code: bool = False) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Load a model's configuration and tokenizer, without weights, of which a folder's headers are checked.

    Raises:
        ValueError: if there is no such model, or it cannot be loaded.
    """
    with _explained(name):
        return _parts(location(name), _options(name, trust_remote_code))


def _options(name: str, trust_remote_code: bool) -> dict[str, Any]:
    """Arguments for every ``from_pretrained`` of a model; probes the hub.

    Raises:
        ValueError: if its file is in GGUF and a package that reads it is missing.
    """
    options = {"trust_remote_code": trust_remote_code, "local_files_only": _only_cached(name)}
    if (file := gguf_file(name)) is None:
        return options
    if missing := [package for package in ("accelerate", "gguf") if find_spec(package) is None]:
        raise ValueError(f"GGUF files need {' and '.join(missing)}: pip install 'pressgauge[gguf]'")
    return {**options, "gguf_file": file}


def _parts(place: str, options: dict[str, Any]) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    # A GGUF file has all of it.
    local = Path(place).is_dir() and "gguf_file" not in options
    # A folder that cannot be listed is an error here, and has no files for glob.
    if local and not any("token" in name or name.startswith("vocab") for name in os.listdir(place)):
        # Some versions of transformers would construct a tokenizer with an empty vocabulary.
        raise ValueError("it has no tokenizer files")
    if local and (Path(place) / "config.json").is_file():
        check_config(read_object(Path(place) / "config.json"))
        check_tokenizer_file(Path(place) / "tokenizer.json")
    config = AutoConfig.from_pretrained(place, **options)
    tokenizer = AutoTokenizer.from_pretrained(place, **options)
    check_tokenizer(config, tokenizer)
    if local:
        check_files(Path(place), config, trust_remote_code=options["trust_remote_code"])
    return config, tokenizer


def _dequantised() -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for a GGUF file; some releases would multiply packed weights by kernels."""
    made = getattr(transformers, "GgufConfig", None)
    return {} if made is None else {"quantization_config": made(dequantize=True)}


def load(
    name: str,
    *,
    device: torch.device | str = "cpu",
    dtype: str = "float32",
    trust_remote_code: bool = False,
    device_map: placed.DeviceMap | None = None,
    tensor_parallel: int = 1,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal model, in evaluation mode, and its tokenizer. Weights must be safetensors or GGUF, which is
    dequantised.

    Args:
        name: ``reference`` (a Llama), ``reference-neox`` (a GPT-NeoX), a local folder, a GGUF file, or a hub name.
        device: device of the model.
        dtype: one of ``DTYPES``.
        trust_remote_code: whether to run code that comes with the model.
        device_map: devices of its layers, as in transformers, in place of ``device``; ``auto`` fills accelerators, then
            the main memory, then a temporary folder.
        tensor_parallel: number of processes that share it, all those of ``torch.distributed``, by transformers'
            ``tp_plan``.

    Raises:
        ValueError: if the dtype is not supported, this machine has no such device, or the model cannot be loaded.
    """
    check_dtype(dtype)
    place = pick_device(str(device))
    with _explained(name):
        options = _options(name, trust_remote_code)
        config, tokenizer = _parts(location(name), options)
        given, folder = ({}, None) if device_map is None else placed.placing(device_map)
        if tensor_parallel > 1:
            given = heads.shared_by(config, tensor_parallel)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            location(name),
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            output_loading_info=True,
            # They are refused below, by name.
            ignore_mismatched_sizes=True,
            **options,
            **(_dequantised() if "gguf_file" in options else {}),
            **given,
        )
        model, loading = loaded
        check_loaded(model, loading)
    if folder is None and tensor_parallel == 1:
        model.to(place)
    elif folder is not None:
        placed.own(model, folder)
    model.eval()
    return model, tokenizer
