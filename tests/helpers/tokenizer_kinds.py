"""Small tokenizers of the kinds that models have: with a space in front of a text or none, whole words or pieces."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = (
    "bottle store After Today into Alex John Mary gave milk went Tom and met the zoo cat dog to of at in an a".split()
)
_OTHERS = [*"0123456789", "17", "18", "59", "=", "(", ")", ",", "."]
KINDS = ("llama2", "byte_level", "metaspace", "word_level")


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Of WORDS, digits, the numbers 17, 18 and 59 and some marks, each one token with a space before it and without.

    "into" and "1859" are tokens of their own. The BOS token is <s>, the EOS token </s>.
    """
    raw = {"llama2": _llama2, "byte_level": _byte_level, "metaspace": _metaspace, "word_level": _word_level}[kind]()
    raw.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def token(kind: str, text: str) -> int:
    """Id of the token of this text, its space as the vocabulary writes it."""
    mark = {"byte_level": "Ġ", "word_level": ""}.get(kind, "▁")
    return int(tokenizer(kind).get_vocab()[text.replace(" ", mark)])


def byte_level(words: Sequence[str], joined: Sequence[tuple[str, str]] = ()) -> PreTrainedTokenizerFast:
    """Like GPT-2's, of these words, in whose order the ids are; pairs of words that are `joined` are tokens, too."""
    raw = _byte_level(words, joined)
    raw.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _merged(
    mark: str, words: Sequence[str] = (*WORDS, *_OTHERS), joined: Sequence[tuple[str, str]] = (("18", "59"),)
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges: each word from its letters, then the mark of a space before the whole."""
    merges = [(word[:end], word[end]) for word in words for end in range(1, len(word))]
    wholes = [*words, *(one + other for one, other in joined)]
    merges = list(dict.fromkeys([*merges, *joined, *((mark, word) for word in wholes)]))
    alphabet = sorted({letter for word in words for letter in word} | {mark})
    tokens = dict.fromkeys(["<unk>", *alphabet, *(one + other for one, other in merges)])
    return {one: i for i, one in enumerate(tokens)}, merges


def _llama2() -> Any:
    """As Llama 2's: a space before every text, and nothing that cuts at spaces."""
    vocabulary, merges = _merged("▁")
    raw = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return raw


def _byte_level(*of: Any) -> Any:
    """As GPT-2's: the space belongs to the word after it, and a text begins without one."""
    vocabulary, merges = _merged("Ġ", *of)
    raw = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return raw


def _metaspace() -> Any:
    """As T5's: pieces of a sentence that are most likely together, a space before every text."""
    vocabulary = dict.fromkeys(["<unk>", *_merged("▁")[0]])
    scores = [(one, -20.0 if len(one) == 1 else -5.0 - (one[0] != "▁")) for one in vocabulary]
    raw = Tokenizer(models.Unigram(scores, unk_id=0))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    return raw


def _word_level() -> Any:
    """As the embedded model's: whole words, and no trace of the spaces between them."""
    vocabulary = dict.fromkeys(["<unk>", *WORDS, *_OTHERS])
    raw = Tokenizer(models.WordLevel({one: i for i, one in enumerate(vocabulary)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return raw
