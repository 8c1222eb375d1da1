"""Prompt pairs: text in, checked token ids out.

Nothing here runs a model. `encode_pair` needs a tokenizer only, so that a bad pair is rejected before weights load.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from igap.errors import InputError
from igap.errors.arguments import NotNegative, checks_arguments
from igap.inputs.alignment import Alignment, Partners, align, first_diff_position
from igap.inputs.answers import Answer, check_apart, check_sets, check_words, one_or_set, to_cell, words_of
from igap.inputs.tokenizing import (
    answer_tokens,
    check_known,
    check_vocabulary,
    leading_token,
    missing_space_warning,
    token_ids,
)
from igap.vocabulary import Align

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@checks_arguments
@dataclass(frozen=True)
class PromptPair:
    """A clean and a corrupted prompt, and the two tokens whose logits are compared after them.

    Args:
        clean: The prompt after which the model should give `answer`.
        corrupted: The prompt that differs in what matters, after which it should give `distractor`.
        answer: One token that continues both prompts, with its leading space where the tokenizer has one (" John"). Or
            several, each of which is right: (" is", " has"). With metric="logprob" one word of several tokens as well.
        distractor: The other token, or the wrong ones, likewise.
        min_gap: Logits, default 0.1. Below this |gap|, or a tenth of |F(clean)|, scores are missing. 0: no bound.
        align: Default "error". How prompts of different token length are matched; see `igap.vocabulary.Align`.
        bos: The token before both prompts. "auto" (default): the model's own setting; "none"; or a token's text.
        place: The prefix of the texts' names in messages, default "prompts.".
        further: What else is known of the pair, text by name, which pairs.csv keeps; empty by default. `spans` is what
            `positions="own"` means: {"spans": '{"S2": "Mary:2", "end": 16}'}.

    Raises:
        InputError: An empty text or set, equal prompts, or an answer twice. Tokens are checked where the pair meets a
            model.

    Example:
        >>> pair.texts[2:]
        (' John', ' Mary')
    """

    clean: str
    corrupted: str
    answer: Answer
    """The word that continues the clean prompt, with its leading space where the tokenizer cares; or several."""
    distractor: Answer
    """The word that continues the corrupted prompt; or several."""
    min_gap: NotNegative = 0.1
    """Logits. Below this absolute gap, or a tenth of |F(clean)|, scores (effect / gap) are missing: they would explode.
    0 for no bound."""
    align: Align = "error"
    """How prompts of different token length are matched; those of one length always are position by position."""
    bos: str = "auto"
    """The token before both prompts: "auto", as the model's settings say; "none"; or a token's text ("<s>")."""

    place: str = field(default="prompts.", compare=False, repr=False)
    """The prefix of the texts' names in messages: "prompts." or "pairs.csv, row 3: "."""
    further: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """The other columns of the pair's file."""

    def __post_init__(self) -> None:
        for name in ("clean", "corrupted", "answer", "distractor", "bos"):
            check_words(self.place + name, getattr(self, name))
        for name in ("answer", "distractor"):
            object.__setattr__(self, name, one_or_set(words_of(getattr(self, name))))
        if self.clean == self.corrupted:
            raise InputError(
                f"{self.place}corrupted: got the same text as {self.short}clean ({self.clean!r}), wanted a different "
                "prompt: every effect would be 0. Change a word of it."
            )
        check_apart(self.place, self.answer, self.distractor)

    @property
    def texts(self) -> tuple[str, str, Answer, Answer]:
        """Clean, corrupted, answer, distractor."""
        return self.clean, self.corrupted, self.answer, self.distractor

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """`texts` as a table has them: a set is a JSON list."""
        return self.clean, self.corrupted, to_cell(self.answer), to_cell(self.distractor)

    @property
    def short(self) -> str:
        """The end of `place`, which names a text once the rest was said: "prompts." or ""."""
        return self.place.rpartition(": ")[2]


SCORED_SHARE = 0.1
"""Smallest |gap| / |F(clean)| with scores. Below it a component that takes away all of F(clean) has a |score| above 10,
and scores say more about the small gap than about the component."""


def min_scored_gap(min_gap: float, clean_logit_diff: float) -> float:
    """The absolute gap, in logits, below which there are no scores; 0 if `min_gap` is 0, which asks for every score."""
    return max(min_gap, SCORED_SHARE * abs(clean_logit_diff)) if min_gap else 0.0


@dataclass(frozen=True, eq=False)
class TokenPair:
    """A prompt pair as token ids of one model."""

    clean: Int[Tensor, "1 pos"]
    """The clean prompt, and `forced` after it."""
    corrupted: Int[Tensor, "1 corrupted_pos"]
    alignment: Alignment
    answers: tuple[int, ...]
    """The right tokens, in most pairs one; the last one of an answer of several tokens."""
    distractors: tuple[int, ...]
    """The wrong ones; none where a distractor is several tokens, which no metric reads."""
    min_gap: float
    """In F's unit; see PromptPair."""
    clean_words: tuple[str, ...]
    """The clean prompt, one string a token; those of `forced` begin with a plus sign."""
    corrupted_words: tuple[str, ...]
    forced: tuple[int, ...] = ()
    """The tokens of an answer of several before its last: both prompts go on with them, and F is read after each."""
    bos: str = "auto"
    """See PromptPair."""
    leading: str | None = None
    """The token before both prompts, as text; None if there is none."""
    spans: str | None = None
    """Spans of its own by name, as JSON: what `further` of the pair holds under this name."""
    cautions: tuple[str, ...] = ()
    """Warnings that a space may be missing before answer or distractor."""

    @property
    def answer(self) -> int:
        """The right token. Raises InputError where there are several."""
        return _only(self.answers, "answer")

    @property
    def distractor(self) -> int:
        """The wrong token. Raises InputError where there are several."""
        return _only(self.distractors, "distractor")

    @property
    def n_read(self) -> int:
        """Number of positions that F is read at, the last ones: one for each token of the answer."""
        return len(self.forced) + 1

    @property
    def n_prompt(self) -> int:
        """Number of tokens of the clean prompt itself, without those of the answer."""
        return self.clean.shape[1] - len(self.forced)

    @property
    def n_prompt_corrupted(self) -> int:
        """The same of the corrupted prompt."""
        return self.corrupted.shape[1] - len(self.forced)

    @property
    def has_logit_diff(self) -> bool:
        """Whether answer and distractor are single tokens, or sets of some: their logits can be compared."""
        return not self.forced and bool(self.distractors)

    @property
    def n_leading(self) -> int:
        """Number of tokens before both prompts, 0 or 1. Messages count without it, the written numbers with it."""
        return int(self.leading is not None)

    @property
    def identity(self) -> dict[str, object]:
        """Everything a result on this pair depends on, as JSON values: token ids, alignment, answer, distractor."""
        answer, distractor = (
            tokens[0] if len(tokens) == 1 else list(tokens) for tokens in (self.answers, self.distractors)
        )
        return {
            "clean": self.clean[0].tolist(),
            "corrupted": self.corrupted[0].tolist(),
            "partners": [list(self.alignment.clean), list(self.alignment.corrupted)],
            "answer": answer,
            "distractor": distractor,
            **({"forced": list(self.forced)} if self.forced else {}),
        }

    @cached_property
    def first_difference(self) -> int:
        """Index of the first clean position whose activations the corrupted run changes; 0 is the first token.

        For prompts of equal length, the first position at which their tokens differ.
        """
        return self._first_position(self.alignment.clean, self.clean, self.corrupted)

    @cached_property
    def first_difference_in_corrupted(self) -> int:
        """Index of the first corrupted position whose activations the clean run changes."""
        return self._first_position(self.alignment.corrupted, self.corrupted, self.clean)

    @staticmethod
    def _first_position(partners: Partners, here: Tensor, there: Tensor) -> int:
        position = first_diff_position(partners, here[0].tolist(), there[0].tolist())
        assert position is not None, "encode_pair refuses a pair in which nothing changes"
        return position


def _only(tokens: tuple[int, ...], name: str) -> int:
    if len(tokens) > 1:
        raise InputError(f"{name}: got a set of {len(tokens)} tokens, wanted one. Use {name}s, which has them all.")
    if not tokens:
        raise InputError(f"{name}: got a word of several tokens, wanted one. Name a word that is one token.")
    return tokens[0]


def encode_pair(
    pair: PromptPair,
    tokenizer: Any,
    *,
    prepend_bos: bool,
    n_ctx: int | None,
    n_vocab: int | None,
    several: bool | None = None,
    device: str | torch.device = "cpu",
) -> TokenPair:
    """Tokenise and check a pair.

    Raises InputError if the prompts cannot be aligned, exceed the context of `n_ctx` tokens, or hold a word that the
    tokenizer or the model (`n_vocab` tokens) does not know, and if an answer or distractor does not continue both
    prompts by exactly one token. With `several` it may be one word of more tokens; False: another metric allows it.
    """
    known: Any = {"prepend_bos": prepend_bos, "bos": pair.bos, "n_ctx": n_ctx, "n_vocab": n_vocab}
    clean, corrupted = (
        encode_prompt(tokenizer, text, item=pair.place + item, **known)
        for item, text in (("clean", pair.clean), ("corrupted", pair.corrupted))
    )
    clean_words, corrupted_words = (tuple(tokenizer.decode([i]) for i in ids) for ids in (clean, corrupted))
    lead = leading_token(tokenizer, pair.bos, prepend_bos=prepend_bos)
    n_leading = int(lead is not None)
    listing = f"\n  clean:     {_show(clean_words[n_leading:])}\n  corrupted: {_show(corrupted_words[n_leading:])}"
    if len(clean) != len(corrupted) and pair.align == "error":
        raise InputError(
            f"{pair.place}corrupted: got {len(corrupted) - n_leading} tokens, {pair.short}clean has "
            f"{len(clean) - n_leading} (without the token before every prompt); patching needs prompts of one length. "
            f"Reword one of them, or set prompts.align=end or prompts.align=diff.{listing}"
        )
    if clean == corrupted:
        raise InputError(
            f"{pair.place}corrupted: got the same tokens as {pair.short}clean ({_show(clean_words)}), wanted a "
            "different prompt: every effect would be 0. Change a word of it."
        )
    words = [(pair.place + name, word) for name in ("answer", "distractor") for word in words_of(getattr(pair, name))]
    tokens = _tokens_after_both(tokenizer, words, pair, n_vocab, several)
    n_right = len(words_of(pair.answer))
    check_apart(pair.place, pair.answer, pair.distractor, (tokens[:n_right], tokens[n_right:]))
    check_sets(words, tokens, pair.answer, pair.distractor)
    forced = tokens[0][:-1]
    if forced and n_ctx is not None and (longest := max(len(clean), len(corrupted)) + len(forced)) > n_ctx:
        raise InputError(
            f"{pair.place}answer: got {pair.answer!r}, all of which but its last token follows the prompt, {longest} "
            f"tokens together; the model's context holds {n_ctx}. Shorten the prompt."
        )
    alignment = align([*clean, *forced], [*corrupted, *forced], pair.align)
    if alignment.clean[len(clean) - 1] != len(corrupted) - 1:
        raise InputError(
            f"prompts.align: got diff, which does not match the last tokens of {pair.place}clean and {pair.short}"
            f"corrupted, where the answer is read. Use prompts.align=end, or reword one.{listing}"
        )
    cautions = (missing_space_warning(tokenizer, item, word, pair.clean) for item, word in words)
    single = all(len(each) == 1 for each in tokens[n_right:])
    appended = tuple(f"+{tokenizer.decode([i]).strip()}" for i in forced)
    return TokenPair(
        clean=torch.tensor([[*clean, *forced]], device=device),
        corrupted=torch.tensor([[*corrupted, *forced]], device=device),
        alignment=alignment,
        answers=tuple(each[-1] for each in tokens[:n_right]),
        distractors=tuple(each[0] for each in tokens[n_right:]) if single else (),
        forced=forced,
        min_gap=pair.min_gap,
        clean_words=(*clean_words, *appended),
        corrupted_words=(*corrupted_words, *appended),
        bos=pair.bos,
        leading=None if lead is None else tokenizer.decode([lead]),
        spans=pair.further.get("spans"),
        cautions=tuple(filter(None, cautions)),
    )


def tokenize(model: "TransformerBridge", pair: PromptPair, *, several: bool | None = None) -> TokenPair:
    """Tokenise a pair for this model, on its device. Raises InputError as `encode_pair` does."""
    return encode_pair(
        pair,
        model.tokenizer,
        prepend_bos=bool(model.cfg.default_prepend_bos),
        n_ctx=model.cfg.n_ctx,
        n_vocab=model.cfg.d_vocab,
        several=several,
        device=next(model.parameters()).device,
    )


def encode_prompt(
    tokenizer: Any,
    text: str,
    *,
    prepend_bos: bool,
    item: str,
    n_ctx: int | None,
    n_vocab: int | None,
    bos: str = "auto",
) -> list[int]:
    """Token ids of a prompt, the leading token (see `leading_token`) included. Raises InputError naming `item`."""
    ids = token_ids(tokenizer, text)
    check_known(tokenizer, ids, text, item)
    lead = leading_token(tokenizer, bos, prepend_bos=prepend_bos)
    if lead is not None and ids[0] != lead:
        ids = [lead, *ids]
    check_vocabulary(ids, n_vocab, item)
    if n_ctx is not None and len(ids) > n_ctx:
        own = f"{len(ids)} tokens" if lead is None else f"{len(ids) - 1} tokens and the token before every prompt"
        raise InputError(f"{item}: got {own}, the model's context holds {n_ctx}. Shorten the prompt.")
    return ids


def _tokens_after_both(
    tokenizer: Any, words: Sequence[tuple[str, str]], pair: PromptPair, n_vocab: int | None, several: bool | None
) -> list[tuple[int, ...]]:
    clean, corrupted = (
        answer_tokens(tokenizer, words, text, n_vocab, several=several) for text in (pair.clean, pair.corrupted)
    )
    for (item, word), tokens, beside in zip(words, clean, corrupted, strict=True):
        if tokens != beside:
            raise InputError(
                f"{item}: got {word!r}, which is another token after {pair.short}corrupted than after {pair.short}"
                "clean. Let the two prompts end alike."
            )
    return clean


def _show(words: tuple[str, ...]) -> str:
    return "|".join(words)
