"""Small tokenizers of each kind: bytes, subwords with a vocabulary of 512, and whole words."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pressgauge.models import load_parts
from pressgauge.tasks import TASKS


def _corpus() -> list[str]:
    return [task.draw(seed, 60, seed).prompt for task in TASKS.values() for seed in range(3)]


def _fast(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerBase:
    """A tokenizer: ``bytes``, ``subwords`` (BOS at the beginning), ``pieces`` (sentencepiece, BOS and EOS around a
    text), ``characters`` or ``reference``."""
    if kind == "reference":
        return load_parts("reference")[1]
    if kind == "bytes":
        numbers = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        tokenizer = Tokenizer(models.BPE(vocab=numbers, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return _fast(tokenizer)
    if kind == "characters":
        tokens = ["<unk>", *sorted(set("".join(_corpus())) | set("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"))]
        tokenizer = Tokenizer(models.WordLevel(vocab={t: i for i, t in enumerate(tokens)}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        tokenizer.decoder = decoders.Fuse()
        return _fast(tokenizer, unk_token="<unk>")
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    special = ["<unk>", "<s>", "</s>"]
    if kind == "subwords":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        template = "<s> $A"
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        alphabet = [chr(code) for code in range(33, 127)] + ["\n"]
        template = "<s> $A </s>"
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("</s>", 2)])
    return _fast(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


KINDS = ("bytes", "subwords", "pieces", "characters")
