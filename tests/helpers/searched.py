"""Spaces for tests of the search: prompts of the notebook's template, one space of each kind, and a tokenizer of
subwords, for which a word's tokens depend on the space before it as GPT-2's do.
"""

from functools import cache

from igap import PromptPair
from igap.counterfactual.spaces.base import BoundSpace
from igap.counterfactual.spaces.prompt_list import bind_prompt_list, prompt_list_space
from igap.counterfactual.spaces.substitution import bind_substitution, substitution_space
from igap.counterfactual.spaces.template import bind_template, template_space

TEMPLATE = "After {first} and {second} went to the {place}, {subject} {verb} a {object} to"


def prompt(first: str, second: str, subject: str, answer: str) -> PromptPair:
    """A clean prompt in words of the random models; its hand-made corrupted one has the other name act."""
    clean, corrupted = (
        f"After {first} and {second} went to the store, {one} gave a bottle of milk to" for one in (subject, answer)
    )
    return PromptPair(clean, corrupted, f" {answer}", f" {subject}", min_gap=0.0)


ABBA = prompt("John", "Mary", "Mary", "John")
BABA = prompt("Mary", "John", "Mary", "John")
PAIRS = (ABBA, prompt("Tom", "Anna", "Anna", "Tom"), BABA)

RULES = {
    "first": ["=keep", "=N2", "=fresh[0]", "John"],
    "second": ["=keep", "=N1", "=animal[0]"],
    "subject": ["=keep", "=S", "=IO", "Tom"],
    "place": ["=keep"],
    "verb": ["=keep", "went"],
    "object": ["=keep", "bottle of milk", "gave it to"],
}
"""For each clean prompt another corrupted one."""
WORDS = {
    "first": ["John", "Mary", "Tom"],
    "second": ["Mary", "Anna", "cat"],
    "subject": ["John", "Mary", "Anna"],
    "place": ["store", "milk"],
    "verb": ["gave", "went"],
    "object": ["bottle of milk", "dog it gave"],
}
"""For all clean prompts the same corrupted one."""


def searched(kind: str, pairs: tuple[PromptPair, ...], tokenizer, *, bos: bool = True) -> BoundSpace:
    """A space of one kind (rules, words, substitute, prompts), filled in for these clean prompts."""
    if kind == "substitute":
        space = substitution_space(pairs[0], [2, 4, 12], ["John", "cat", "milk"], None, tokenizer, prepend_bos=bos)
        return bind_substitution(space, pairs, tokenizer, prepend_bos=bos)
    if kind == "prompts":
        texts = [pair.corrupted for pair in PAIRS] + [ABBA.clean.replace("store", "milk"), ABBA.clean]
        space = prompt_list_space(pairs[0], texts, tokenizer, prepend_bos=bos)
        return bind_prompt_list(space, pairs, tokenizer, prepend_bos=bos)
    lists = {"rules": RULES, "words": WORDS}[kind]
    space = template_space(TEMPLATE, lists, pairs[0], tokenizer, prepend_bos=bos)
    return bind_template(space, pairs, tokenizer, prepend_bos=bos)


@cache
def subwords():
    """A byte-level BPE tokenizer: a word of its sentences is one token, with its space; others are several."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    sentences = [
        "After John and Mary and Tom and Anna went to the store, gave a bottle of milk cat dog it to",
        *(f"{name} met Mary. John waved, {name} left. After Mary met" for name in ("John", "Mary", "Tom", "Anna")),
    ]
    trainer = trainers.BpeTrainer(
        min_frequency=2,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator([sentence for sentence in sentences for _ in range(4)], trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=end, eos_token=end, pad_token=end)
