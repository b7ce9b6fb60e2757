"""Loading of texts as token ids."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pressgauge.reference.language import TOKENS, document
from pressgauge.rules import whole_number
from pressgauge.texts import HUB, check_text_name, files

DOCUMENTS = 100_000
"""Documents of the reference language that are a text; each further seed would be another."""
MOST_UNKNOWN = 0.5
"""Share of unknown tokens above which a text says nothing about a model."""


def _from_hub(name: str) -> list[str]:
    from datasets import load_dataset

    dataset, configuration, separate = HUB[name]
    try:
        records = load_dataset(dataset, configuration, split="test")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"text {name!r} could not be loaded from the hub ({dataset}): check the network, or download it elsewhere "
            "and give the path of a text file"
        ) from error
    texts = list(records["text"])
    return texts if separate else ["".join(texts)]


def _windows(ids: Tensor, tokens: int, samples: int) -> list[Tensor]:
    """Evenly spaced, disjoint windows of ``tokens`` ids."""
    stride = len(ids) // samples
    return [ids[sample * stride : sample * stride + tokens] for sample in range(samples)]


def _pieces(name: str, encode: Callable[[str], Tensor], samples: int, tokens: int, wanted: int) -> list[Tensor]:
    """Ids of each sample without the BOS token, ``wanted`` of its ``tokens``.

    Raises:
        ValueError: if the text is too short, with its length.
    """

    def too_few(found: str) -> ValueError:
        return ValueError(
            f"text {name!r} has too few tokens for {samples} samples of {tokens}: ask for fewer or shorter ones "
            f"({found})"
        )

    if name not in HUB and (size := Path(name).stat().st_size) > files.WHOLE:
        if size < samples:
            raise too_few(f"it has {size:,} bytes")
        pieces: list[Tensor] = []
        for piece, length in files.parts(Path(name), samples, wanted, encode):
            if len(piece) < wanted:
                raise too_few(f"{length:,} bytes of sample {len(pieces) + 1} have {len(piece):,} of {wanted:,}")
            pieces.append(piece)
        return pieces
    texts = _from_hub(name) if name in HUB else [files.read_text(Path(name))]
    if len(texts) > 1:
        if len(texts) < samples:
            raise ValueError(f"text {name!r} has {len(texts)} books, got --samples {samples}")
        # Enough characters for the wanted tokens, none of which is longer than a few words.
        pieces = [encode(text[: 64 * tokens])[:wanted] for text in texts[:samples]]
        for number, piece in enumerate(pieces, 1):
            if len(piece) < wanted:
                raise too_few(f"book {number} has {len(piece):,} of {wanted:,}")
        return pieces
    ids = encode(texts[0])
    if len(ids) < samples * wanted:
        raise too_few(f"it has {len(ids):,} of {samples * wanted:,}")
    return _windows(ids, wanted, samples)


def load_text(name: str, tokenizer: PreTrainedTokenizerBase, *, samples: int, tokens: int) -> Tensor:
    """Load samples of a text as token ids.

    Args:
        name: ``reference``, ``wikitext-2``, ``pg-19``, or the path of a UTF-8 file.
        tokenizer: the model's tokenizer.
        samples: number of samples. With ``pg-19`` each is the beginning of a different book, with ``reference`` a
            different document, else they are windows spread evenly over the tokens of the text. Of a file larger than
            4 MiB they are spread evenly over its bytes, and only they are read.
        tokens: tokens per sample, including the BOS token if the tokenizer adds one.

    Returns:
        ``[samples, tokens]`` int64.

    Raises:
        TypeError: if ``samples`` or ``tokens`` is not an integer, or ``tokenizer`` is none.
        ValueError: if there is no such text, it cannot be loaded or is too short, or only one of tokenizer and text is
            of the reference language.
    """
    whole_number("samples", samples, 1)
    whole_number("tokens", tokens, 2)
    check_text_name(name)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(
            f"tokenizer must be a transformers tokenizer, got {type(tokenizer).__name__}: pressgauge.models.load gives "
            "the model and its tokenizer"
        )
    reference = tokenizer.convert_tokens_to_ids(list(TOKENS)) == list(range(len(TOKENS)))
    if name == "reference":
        if not reference:
            raise ValueError(
                "text 'reference' is in the words of the reference models: give --text wikitext-2, pg-19 or a file"
            )
        if samples > DOCUMENTS:
            raise ValueError(f"text 'reference' has {DOCUMENTS:,} documents, got --samples {samples}")
        return torch.tensor([document(seed, tokens).tokens for seed in range(samples)])
    mark = list(tokenizer("").input_ids)
    mark = mark[:1] if mark and mark[0] == tokenizer.bos_token_id else []
    try:
        pieces = _pieces(name, partial(_encode, tokenizer), samples, tokens, tokens - len(mark))
    except Exception as error:
        # The package tokenizers raises nothing narrower, such as for a word that is not in its vocabulary.
        if type(error) is not Exception:
            raise
        raise ValueError(
            f"text {name!r} cannot be tokenised by the model's tokenizer ({error}): give another text or model"
        ) from error
    ids = torch.stack([torch.cat([torch.tensor(mark, dtype=torch.long), piece]) for piece in pieces])
    unknown = unknown_share(ids, tokenizer)
    if reference and unknown > MOST_UNKNOWN:
        raise ValueError(
            f"text {name!r} is not in the language of the reference models, which do not know {unknown:.0%} of its "
            "tokens: give --text reference, or another --model"
        )
    return ids


def unknown_share(ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> float:
    """Share of ``ids``, ``[samples, tokens]``, that are the tokenizer's unknown token."""
    unknown = tokenizer.unk_token_id
    if unknown is None:
        # A tokenizer may have an unknown token without declaring it.
        mark = getattr(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None), "unk_token", None)
        unknown = None if mark is None else tokenizer.convert_tokens_to_ids(mark)
    return 0.0 if unknown is None else float((ids == unknown).double().mean())


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False).input_ids, dtype=torch.long)
