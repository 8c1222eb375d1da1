"""Transformers with weights written by hand, as GPT-2 checkpoints in float64.

The residual stream is described in features: a feature is a direction, and a number along it. A word or a position puts
features there, a head moves them from one position to another, a neuron reads and writes them, a logit reads them. The
model computes exactly that, in float64 to the last digits:

- A feature takes two dimensions, which hold x and -x. Every vector has mean 0, so that no layer norm centres it.
- The norms' epsilon is so large that they divide by its root, whatever they are given: they are linear, and their
  weights undo the division.
- Attention is uniform over the positions so far, or has the scores that a head's `matches` give.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.components import parse_component
from igap.models.load import load_model
from igap.models.quiet import silence_libraries

_WORDS = "<|endoftext|> <unk> After Then John Mary Tom Anna and went to the store , gave a bottle of milk cat dog . it"
WORDS = tuple(_WORDS.split())
"""Every word that these models know; the first is also their BOS token."""

ONE = "one"
"""The feature that is 1 everywhere: read as a bias."""

SHARP = 60.0
"""A score that leaves the other positions e^-60 of the attention: less than a rounding."""

_ROOT = 1e8
_CONTEXT = 24

Features = Mapping[str, float]
"""Weights of features by their names."""


@dataclass(frozen=True)
class _Head:
    moves: Sequence[tuple[Features, Features]]
    matches: Sequence[tuple[Features, Features]]


class Blueprint:
    """A transformer described in features; see the module.

    Args:
        n_layers: Blocks.
        n_heads: Heads a block. Those without a description have weights of 0.
        n_neurons: Neurons a block, likewise.
        activation: Name of the neurons' nonlinearity in transformers.
    """

    def __init__(self, n_layers: int, n_heads: int, n_neurons: int, activation: str = "relu") -> None:
        """Starts with weights of 0."""
        self.n_layers, self.n_heads, self.n_neurons, self.activation = n_layers, n_heads, n_neurons, activation
        self._words: dict[str, Features] = {}
        self._places: dict[int, dict[str, float]] = {}
        self._heads: dict[tuple[int, int], _Head] = {}
        self._neurons: dict[tuple[int, int], tuple[Features, Features]] = {}
        self._constants: dict[int, Features] = {}
        self._logits: dict[str, Features] = {}

    def word(self, word: str, **features: float) -> None:
        """What the residual stream holds at a word."""
        self._words[word] = features

    def place(self, position: int, **features: float) -> None:
        """What it holds at a position, BOS is 0, beside the word's."""
        self._places.setdefault(position, {}).update(features)

    def head(
        self,
        name: str,
        *moves: tuple[Features, Features],
        matches: Sequence[tuple[Features, Features]] = (),
    ) -> None:
        """A head.

        Args:
            name: As 0.1.
            moves: What each dimension of its activation reads where the head looks, and what it writes where it stands.
            matches: What a query reads and what a key reads. The attention score is the sum of their products; without
                any, attention is uniform over the positions so far. See also `look_at` and `look_back`.
        """
        _, layer, index = parse_component(name)
        self._heads[layer, index] = _Head(moves, matches)

    def look_at(self, position: int) -> list[tuple[Features, Features]]:
        """The matches of a head that looks at one position, from there on."""
        (feature,) = self._place_numbers(position)
        return [({ONE: SHARP}, {feature: 1.0})]

    def look_back(self, n_positions: int) -> list[tuple[Features, Features]]:
        """The matches of a head that looks at the previous position, in prompts of up to so many with BOS."""
        features = self._place_numbers(*range(n_positions))
        return [({this: SHARP}, {before: 1.0}) for before, this in itertools.pairwise(features)]

    def _place_numbers(self, *positions: int) -> list[str]:
        """The feature of each of these positions that it alone has."""
        for position in positions:
            self.place(position, **{f"place_{position}": 1.0})
        return [f"place_{position}" for position in positions]

    def neuron(self, name: str, reads: Features, writes: Features) -> None:
        """A neuron, as L0.N1: the nonlinearity of what it reads, times what it writes."""
        _, layer, index = parse_component(name)
        self._neurons[layer, index] = (reads, writes)

    def constant(self, layer: int, **features: float) -> None:
        """What a layer's MLP writes at every position, whatever it reads."""
        self._constants[layer] = features

    def logit(self, word: str, **features: float) -> None:
        """What the logit of a word reads; those of other words are 0."""
        self._logits[word] = features

    def build(self) -> Any:
        """The model of transformers, in float64."""
        from transformers import GPT2Config, GPT2LMHeadModel

        names = self._features()
        channels = max([0, *(max(len(head.moves), len(head.matches)) for head in self._heads.values())])
        d_head = max(channels, math.ceil(2 * len(names) / self.n_heads))
        config = GPT2Config(
            n_layer=self.n_layers,
            n_head=self.n_heads,
            n_embd=self.n_heads * d_head,
            n_inner=self.n_neurons,
            n_positions=_CONTEXT,
            vocab_size=len(WORDS),
            activation_function=self.activation,
            layer_norm_epsilon=_ROOT**2,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
        )
        with torch.random.fork_rng(devices=[]):  # transformers draws weights, which are replaced
            model: Any = GPT2LMHeadModel(config)
        model.to(torch.float64)
        with torch.no_grad():
            self._write(model, {name: 2 * i for i, name in enumerate(names)}, d_head)
        return model

    def save(self, folder: Path) -> None:
        """Write the checkpoint and its tokenizer."""
        with silence_libraries():
            self.build().save_pretrained(folder)
            save_tokenizer(folder)

    def load(self) -> TransformerBridge:
        """The model as a TransformerBridge, by way of its checkpoint."""
        with TemporaryDirectory() as folder:
            self.save(Path(folder))
            return load_model(folder, processing="raw", dtype="float64")

    def _features(self) -> list[str]:
        """Every feature's name, in the order of use."""
        sides = [
            *self._words.values(),
            *self._places.values(),
            *(side for head in self._heads.values() for both in (*head.moves, *head.matches) for side in both),
            *(side for both in self._neurons.values() for side in both),
            *self._constants.values(),
            *self._logits.values(),
        ]
        return list(dict.fromkeys(name for side in sides for name in side if name != ONE))

    def _write(self, model: Any, dims: Mapping[str, int], d_head: int) -> None:
        body = model.transformer
        for parameter in model.parameters():
            parameter.zero_()
        for norm in [body.ln_f, *(norm for block in body.h for norm in (block.ln_1, block.ln_2))]:
            norm.weight.fill_(_ROOT)

        def write(row: Tensor, features: Features) -> None:
            for name, by in features.items():
                row[dims[name]] += by
                row[dims[name] + 1] -= by

        def read(weight: Tensor, bias: Tensor | None, column: int, features: Features, times: float = 1.0) -> None:
            for name, by in features.items():
                if name != ONE:
                    weight[dims[name], column] += times * by
                elif bias is not None:
                    bias[column] += times * by

        for word, features in self._words.items():
            write(body.wte.weight[WORDS.index(word)], features)
        for position, features in self._places.items():
            write(body.wpe.weight[position], features)
        width = self.n_heads * d_head
        for (layer, index), head in self._heads.items():
            attn, first = body.h[layer].attn, index * d_head
            for i, (source, target) in enumerate(head.moves, first):
                read(attn.c_attn.weight, attn.c_attn.bias, 2 * width + i, source)
                write(attn.c_proj.weight[i], target)
            for i, (query, key) in enumerate(head.matches, first):
                read(attn.c_attn.weight, attn.c_attn.bias, i, query, math.sqrt(d_head))
                read(attn.c_attn.weight, attn.c_attn.bias, width + i, key)
        for (layer, index), (source, target) in self._neurons.items():
            mlp = body.h[layer].mlp
            read(mlp.c_fc.weight, mlp.c_fc.bias, index, source)
            write(mlp.c_proj.weight[index], target)
        for layer, features in self._constants.items():
            write(body.h[layer].mlp.c_proj.bias, features)
        for word, features in self._logits.items():
            read(model.lm_head.weight.T, None, WORDS.index(word), features)


def save_tokenizer(folder: Path) -> None:
    """Write a tokenizer of whole words, `WORDS`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    end = WORDS[0]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=end, eos_token=end, pad_token=end, unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
