"""The embedded model is what its card says: small, right on what it never saw, spread over its heads."""

from pathlib import Path

import torch

import igap.models.ioi_mini
from igap import activation_patching, integrated_gradients
from igap.inputs.prompts import tokenize
from igap.inputs.words import ANIMALS, NAMES, OBJECTS, PLACES, VERBS
from igap.models.ioi_mini.evaluate import accuracy, examples
from igap.models.ioi_mini.train import make_tokenizer
from igap.statistics.comparison import compare

FOLDER = Path(igap.models.ioi_mini.__file__).parent


def test_it_has_the_stated_shape_and_size(ioi_mini):
    cfg = ioi_mini.cfg
    assert (cfg.n_layers, cfg.n_heads, cfg.d_model, cfg.d_mlp) == (4, 8, 128, 512)
    assert sum(file.stat().st_size for file in FOLDER.iterdir() if file.is_file()) <= 4_000_000


def test_it_knows_every_word_of_the_generator_with_and_without_a_space(ioi_mini):
    tokenizer = ioi_mini.tokenizer
    for word in {w for text in (*NAMES, *PLACES, *OBJECTS, *VERBS, *ANIMALS) for w in text.split()}:
        (token,) = tokenizer(word, add_special_tokens=False)["input_ids"]
        assert token != tokenizer.unk_token_id, word
        assert tokenizer(f" {word}", add_special_tokens=False)["input_ids"] == [token]


def test_its_tokenizer_is_the_one_its_script_makes(ioi_mini):
    assert ioi_mini.tokenizer.get_vocab() == make_tokenizer().get_vocab()


def test_it_is_right_on_names_never_trained_together_and_on_the_template_never_trained_on(ioi_mini):
    for unseen in ("names", "template"):
        share, difference = accuracy(ioi_mini, examples(300, 7, unseen=unseen))
        assert share >= 0.99, unseen
        assert difference > 2


def test_it_prefers_the_indirect_object_in_both_prompts_of_the_notebook(ioi_mini, pair):
    tokens = tokenize(ioi_mini, pair)
    for prompt, sign in ((tokens.clean, 1), (tokens.corrupted, -1)):
        with torch.no_grad():
            logits = ioi_mini(prompt)[0, -1]
        assert sign * (logits[tokens.answer] - logits[tokens.distractor]) > 1
        assert logits.argmax() == (tokens.answer if sign > 0 else tokens.distractor)


def test_the_notebooks_prompt_about_animals_is_in_its_vocabulary(ioi_mini):
    tokens = ioi_mini.to_tokens("After the cat and the dog went to the store, Mary gave a bottle of milk to")
    assert ioi_mini.tokenizer.unk_token_id not in tokens
    with torch.no_grad():
        likely = ioi_mini(tokens)[0, -1].argmax()
    assert ioi_mini.tokenizer.decode([likely]) == "the"


def test_the_effect_is_spread_over_heads_and_the_methods_do_not_agree_trivially(ioi_mini, pair):
    ap = activation_patching(ioi_mini, pair, "heads")
    share = ap.effect.abs().max() / ap.effect.abs().sum()
    assert share < 0.3
    assert (ap.score.abs() > 0.02).sum() >= 8
    found = compare(integrated_gradients(ioi_mini, pair, "heads"), ap)
    assert 0.8 < found.pearson < 0.995
