"""Tokens of a word that continues a prompt, and the token before every prompt. Runs no model."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from igap.errors import InputError
from igap.models.quiet import as_input_error

_CLOSING = ".,;:!?%)]}'"
"""Characters that follow a word without a space."""

_ids_of_texts: "WeakKeyDictionary[Any, dict[tuple[int, str], tuple[int, ...]]]" = WeakKeyDictionary()
"""What each tokenizer made of a text, by its number of tokens, which changes with tokens that are added."""

_MOST_TEXTS = 2**16
"""Of one tokenizer that are kept."""


def leading_token(tokenizer: Any, bos: str, *, prepend_bos: bool) -> int | None:
    """Id of the token before every prompt, or None; `prepend_bos` is the model's own setting, used by bos="auto".

    Raises InputError if `bos` is not the text of one token, or the tokenizer has no BOS token.
    """
    if bos == "none" or (bos == "auto" and not prepend_bos):
        return None
    if bos == "auto":
        if tokenizer.bos_token_id is None:
            raise InputError(
                "model.name: got a tokenizer without a BOS token, which the model wants before every prompt. Set "
                "prompts.bos=none to put none there or prompts.bos=TOKEN for another token, or save the tokenizer "
                "with its bos_token."
            )
        return int(tokenizer.bos_token_id)
    ids = token_ids(tokenizer, bos)
    if len(ids) != 1 or tokenizer.decode(ids).strip() != bos.strip():
        known = [str(token) for token in (tokenizer.bos_token, tokenizer.eos_token) if token is not None]
        raise InputError(
            f"prompts.bos: got {bos!r}, which is no single token of this model, wanted auto, none or the text of one"
            f"{f' such as {known[0]}' if known else ''}. Correct it."
        )
    return ids[0]


def continuation(tokenizer: Any, prompt: str, word: str) -> list[int] | None:
    """The token ids that `word` adds to those of `prompt`; None if a token would span the boundary.

    They may differ from the tokens of the word alone: Llama 2's tokenizer puts a space of its own before any text.
    A tokenizer that ignores spaces never merges two words.
    """
    before = token_ids(tokenizer, prompt) if prompt else []
    for text in (prompt + word, f"{prompt} {word}"):
        whole = token_ids(tokenizer, text)
        if whole[: len(before)] == before:
            return whole[len(before) :]
        if token_ids(tokenizer, f"{prompt} {word}") != token_ids(tokenizer, f"{prompt}  {word}"):
            return None
    return None


def single_tokens(tokenizer: Any, words: Iterable[str]) -> list[str]:
    """The words that are one known token after another word and a space."""
    return [word for word in words if _is_one_token(tokenizer, continuation(tokenizer, word, f" {word}"))]


def answer_token(tokenizer: Any, item: str, word: str, prompt: str, n_vocab: int | None) -> int:
    """The single token by which `word` continues `prompt`. Raises InputError naming `item` if it is not one token."""
    (token,) = _answer_ids(tokenizer, item, word, prompt, n_vocab, several=None)
    return token


def _answer_ids(
    tokenizer: Any, item: str, word: str, prompt: str, n_vocab: int | None, *, several: bool | None
) -> tuple[int, ...]:
    """The tokens by which `word` continues `prompt`: one, unless they may be `several`; False: with another metric.

    Raises InputError naming `item` if they are not.
    """
    ids = continuation(tokenizer, prompt, word)
    spaced = continuation(tokenizer, prompt, f" {word}") if merges(prompt, word) else ids
    last = prompt.split()[-1]
    glued = bool(several) and ids is not None and len(ids) > 1
    if spaced != ids and (glued or _is_one_token(tokenizer, spaced)):
        raise InputError(
            f"{item}: got {word!r} without a leading space, which would glue to the prompt ({last + word!r}). Write "
            f"{' ' + word!r}, {'which' if glued else 'the token that'} continues it."
        )
    bare = prompt.rstrip(" ")
    two = word[0] == " " and token_ids(tokenizer, bare + word) != token_ids(tokenizer, prompt + word)
    if bare != prompt and (ids is None or two):
        raise InputError(
            f"{item}: got {word!r} after a prompt that ends in a space ({last + ' '!r}), which belongs to the token "
            f"that follows. Take it off the prompt's end and write {' ' + word.lstrip()!r}."
        )
    if ids is None:
        raise InputError(
            f"{item}: got {word!r}, which grows together with the prompt's end: the tokens of {last + word!r} do not "
            f"begin with those of {last!r}, so that no token of its own continues the prompt. Let the prompt end "
            "elsewhere, or name another word."
        )
    check_known(tokenizer, ids, word, item)
    check_vocabulary(ids, n_vocab, item)
    if len(ids) != 1 and not several:
        parts = [tokenizer.decode([i]) for i in ids]
        other = ", or use metric=logprob, which reads answers of several tokens" if several is False else ""
        raise InputError(
            f"{item}: got {word!r}, which is {len(ids)} tokens {parts}, wanted exactly 1. "
            f"Name a word that is one token of this model{other}."
        )
    return tuple(ids)


def answer_tokens(
    tokenizer: Any, words: Sequence[tuple[str, str]], prompt: str, n_vocab: int | None, *, several: bool | None
) -> list[tuple[int, ...]]:
    """The tokens by which each word continues `prompt`: of (item, word), as `_answer_ids` says of `several`.

    Where numbers of a set do, such as the last two digits of years, another number counts by the token of its digits,
    though the tokenizer would not write it so there: GPT-2 has 1700 as one token. Published metrics count it.
    """
    # Two words are no sets; many are taken together where nothing can be said against them.
    plain = _plain_continuations(tokenizer, tuple(word for _, word in words), prompt) if len(words) > 2 else {}
    numbers = [word for word in plain if word.isdecimal()]
    by_digits = bool(numbers) and all(_find_token(tokenizer, word) == plain[word] for word in numbers)
    tokens: list[tuple[int, ...]] = []
    for item, word in words:
        token = plain.get(word, _find_token(tokenizer, word) if by_digits and word.isdecimal() else None)
        known = None if token is None else (token,)
        tokens.append(known or _answer_ids(tokenizer, item, word, prompt, n_vocab, several=several))
        check_vocabulary(list(tokens[-1]), n_vocab, item)
    return tokens


@functools.lru_cache(maxsize=4096)  # a run reads each pair three times, a sweep each job
def _plain_continuations(tokenizer: Any, words: tuple[str, ...], prompt: str) -> Mapping[str, int]:
    """The tokens of the words that one known token adds to the prompt's; `answer_token` gives the same."""
    before = token_ids(tokenizer, prompt)
    whole = tokenizer([prompt + word for word in words], add_special_tokens=False)["input_ids"]
    return {
        word: ids[-1]
        for word, ids in zip(words, whole, strict=True)
        if ids[:-1] == before and ids[-1] != tokenizer.unk_token_id and not merges(prompt, word) and prompt[-1] != " "
    }


def _find_token(tokenizer: Any, word: str) -> int | None:
    """The token that is spelled just so in the vocabulary; None if there is none."""
    token = tokenizer.convert_tokens_to_ids(word)
    return token if token is not None and tokenizer.convert_ids_to_tokens(token) == word else None


def merges(prompt: str, word: str) -> bool:
    """Whether the word would merge with the prompt's last word; after a digit it would not ("17" + "th")."""
    return prompt[-1].isalpha() and word[0].isalnum()


def missing_space_warning(tokenizer: Any, item: str, word: str, prompt: str) -> str:
    """Warn that a space may have been forgotten before the word; empty if it cannot have been."""
    splits_number = prompt[-1].isdigit() and word[0].isdigit()
    if word[0].isspace() or prompt[-1].isspace() or splits_number or word[0] in _CLOSING:
        return ""
    spaced, ids = (continuation(tokenizer, prompt, text) for text in (f" {word}", word))
    known = spaced and tokenizer.unk_token_id not in spaced and len(spaced) <= len(ids or [0])
    if not known or spaced == ids:
        return ""
    return (
        f"{item}: {word!r} continues the prompt without a space ({prompt.split()[-1] + word!r}); if one "
        f"belongs there, write {' ' + word!r}, which is {'another token' if len(spaced or ()) == 1 else 'others'}."
    )


def _is_one_token(tokenizer: Any, ids: list[int] | None) -> bool:
    return ids is not None and len(ids) == 1 and ids[0] != tokenizer.unk_token_id


def check_known(tokenizer: Any, ids: list[int], text: str, item: str) -> None:
    """Raises InputError on a text without tokens, and on a word that the tokenizer does not know."""
    # Tokenizers silently map an unknown word to <unk>. GPT-2's <unk> is its BOS, which no text produces.
    if not ids:
        raise InputError(
            f"{item}: got no token for {text!r}, wanted words that the tokenizer knows. Check that the checkpoint's "
            "folder has its tokenizer files."
        )
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown != tokenizer.bos_token_id and unknown in ids:
        separate = text.replace(",", " ").replace(".", " ").split()
        words = [repr(word) for word in separate if unknown in token_ids(tokenizer, word)][:5]
        raise InputError(
            f"{item}: the tokenizer does not know {', '.join(words) or 'a part of it'} (in {text[:200]!r}). "
            "Use words of the model's vocabulary, or a model that knows them."
        )


def check_vocabulary(ids: list[int], n_vocab: int | None, item: str) -> None:
    """Raises InputError on a token id that is not below `n_vocab`."""
    if n_vocab is not None and max(ids) >= n_vocab:
        raise InputError(
            f"{item}: got token {max(ids)}, but the model has {n_vocab} of them (0 to {n_vocab - 1}). Use the "
            "tokenizer that the model was trained with."
        )


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of the text alone, without BOS. Raises InputError if the tokenizer fails on it."""
    # A search asks for the same words thousands of times.
    known = _ids_of_texts.setdefault(tokenizer, {})
    key = len(tokenizer) if hasattr(tokenizer, "__len__") else 0, text
    ids = known.get(key)
    if ids is None:
        if len(known) >= _MOST_TEXTS:
            known.clear()
        ids = known[key] = tuple(_encode_text(tokenizer, text))
    return list(ids)


def _encode_text(tokenizer: Any, text: str) -> list[int]:
    with as_input_error(
        lambda why: InputError(
            f"model.name: got a tokenizer that fails on {text[:60]!r}: tokenizer.json: {why}. Save the tokenizer again."
        )
    ):
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
