"""What is refused by its config alone, and what a neuron is in each family."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from igap import Prompt, ablate, activation_patching, attribution_patching, integrated_gradients, load_model
from igap.cli import main
from igap.cli.compose import compose_one
from igap.components import PLACES
from igap.models.families import check_family, n_neurons, neurons_reason, widths_of_model
from igap.models.load import read_header
from igap.pipeline import check

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
FAMILIES = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "codegen": {**GPT, "rotary_dim": 4},
    "cohere": SIZES,
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_hidden_size": 48},
    "gemma2": SIZES,
    "gemma3_text": SIZES,
    "gpt2": {**GPT, "n_inner": 48},
    "gpt_bigcode": GPT,
    "gpt_neo": {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 32,
        "attention_types": [[["global", "local"], 1]], "window_size": 8,
    },
    "gptj": {**GPT, "rotary_dim": 4, "n_inner": 48},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 32},
    "opt": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32,
        "max_position_embeddings": 32,
    },
    "openai-gpt": GPT,
    "phi3": {**{name: size for name, size in SIZES.items() if name != "head_dim"}, "pad_token_id": 0},
    "qwen3": SIZES,
    "starcoder2": SIZES,
}  # fmt: skip
MIXTRAL = {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.fixture
def save(checkpoint, tmp_path):
    """Saves a model, or a random one of a family, with the small models' tokenizer; gives the folder's name."""

    def save_model(model, **settings):
        if isinstance(model, str):
            settings = {"vocab_size": 24, "bos_token_id": 0, "eos_token_id": 0, **settings}
            model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model](**settings))
        model.save_pretrained(tmp_path / "model")
        for file in checkpoint("gpt2").glob("tokenizer*"):
            shutil.copy(file, tmp_path / "model")
        return str(tmp_path / "model")

    return save_model


def encoder():
    return BertForMaskedLM(
        BertConfig(vocab_size=24, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    )


def encoders_and_decoders():
    sizes = {"d_model": 32, "vocab_size": 24}
    yield T5ForConditionalGeneration(T5Config(num_layers=1, num_heads=4, d_kv=8, d_ff=48, **sizes))
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_layers": 1, "decoder_layers": 1}
    yield BartForConditionalGeneration(BartConfig(encoder_ffn_dim=48, decoder_ffn_dim=48, **heads, **sizes))


def test_an_encoder_is_refused_by_command_line_and_python_alike_before_its_weights_load(save, capsys):
    folder = save(encoder())
    (weights,) = Path(folder).glob("*.safetensors")
    weights.write_bytes(b"")  # would be refused by itself
    wanted = rf"model\.name: got '{folder}' \(BertForMaskedLM\), an encoder, which also reads what comes after a token"
    with pytest.raises(ValueError, match=wanted) as refused:
        load_model(folder)
    capsys.readouterr()  # what saving said
    assert main(["run", "model=hf", f"model.name={folder}"]) == 2
    assert capsys.readouterr().err == f"igap: {refused.value}\n"


def test_a_bert_that_was_not_made_a_decoder_is_an_encoder_whatever_its_class():
    settings = {"architectures": ["BertLMHeadModel"], "hidden_size": 32}
    check_family(BertConfig(is_decoder=True, **settings), "bert")
    with pytest.raises(ValueError, match="an encoder, which also reads"):
        check_family(BertConfig(is_decoder=False, **settings), "bert")


@pytest.mark.parametrize("which", [0, 1])
def test_an_encoder_with_a_decoder_is_refused(save, which):
    with pytest.raises(ValueError, match=r"\((T5|Bart)ForCond\w+\), an encoder and a decoder; wanted a causal decoder"):
        load_model(save([*encoders_and_decoders()][which]))


@pytest.mark.parametrize("family", ["persimmon", "biogpt"])
def test_an_architecture_that_transformerlens_lacks_is_refused_in_one_line(save, family):
    settings = {name: size for name, size in SIZES.items() if name not in ("head_dim", "num_key_value_heads")}
    with pytest.raises(ValueError, match=r"\((Persimmon|BioGpt)ForCausalLM\), wanted an architecture that Tr") as error:
        load_model(save(family, **settings))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_header_knows_the_mlps_hidden_width_and_whether_the_model_wants_a_bos_token(save, family):
    header = read_header(save(family, **FAMILIES[family]))
    theirs = AutoModelForCausalLM.from_pretrained(header.folder)
    widths = []
    for module in theirs.modules():
        name = type(module).__name__
        if name.endswith("DecoderLayer") and hasattr(module, "fc2"):  # OPT has no module for its MLP
            widths.append(module.fc2.in_features)
        elif name.upper().endswith("MLP") and list(module.children()):
            *_, out = (each for each in module.modules() if getattr(each, "weight", None) is not None)
            # A linear layer keeps [out, in], GPT-2's Conv1D [in, out]: the side that is not the residual stream's.
            widths.append(sum(out.weight.shape) - 32)
    assert len(widths) == 2
    assert [header.n_neurons] * 2 == widths
    assert header.neurons_reason is None
    model = load_model(str(header.folder), processing="raw")
    cache = model.run_with_cache(torch.arange(8)[None])[1]
    assert cache["blocks.1.mlp.hook_post"].shape[-1] == header.n_neurons
    n_kv_heads = {"k": cache["blocks.1.attn.hook_k"].shape[2], "v": cache["blocks.1.attn.hook_v"].shape[2]}
    others = {site: 1 for site, place in PLACES.items() if place.is_vector}
    widths = {"heads": 4, "neurons": header.n_neurons, "q": 4, **n_kv_heads, **others}
    assert widths_of_model(model) == header.widths == widths
    assert header.prepends_bos == model.cfg.default_prepend_bos


def test_a_mixture_of_experts_has_heads_and_no_neurons(save, pair, capsys):
    folder = save("mixtral", **MIXTRAL)
    reason = r"whose neurons have no effects: an MLP of it is a mixture of 4 experts, .* Use sites=heads"
    with pytest.raises(ValueError, match=reason):
        check(compose_one(["model=hf", f"model.name={folder}"]).config)
    assert main(["search", "model=hf", f"model.name={folder}", "head=L0.N3"]) == 2
    assert "whose neurons have no effects" in capsys.readouterr().err
    model = load_model(folder)
    for method in (activation_patching, attribution_patching, integrated_gradients):
        with pytest.raises(ValueError, match=reason):
            method(model, pair, "neurons")
    with pytest.raises(ValueError, match=reason):
        ablate(model, [Prompt(pair.clean, pair.answer)], ["0.1", "L0.N3"])
    assert activation_patching(model, pair, "heads").effect.shape == (2, 4)


def test_columns_that_are_not_the_mlps_neurons_are_refused_with_both_numbers(small, pair, monkeypatch):
    model = small("gpt2")
    monkeypatch.setattr(model.original_model.config, "n_inner", 47)
    reason = r"hook_post has 48 columns, but an MLP of it has 47 neurons\. Use sites=head"
    with pytest.raises(ValueError, match=reason):
        attribution_patching(model, pair, "neurons")
    with pytest.raises(ValueError, match=reason):
        ablate(model, [Prompt(pair.clean, pair.answer)], ["L0.N3"])
    attribution_patching(model, pair, "heads")


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3", "ernie4_5_moe", "jetmoe", "granitemoe"])
def test_experts_are_known_under_all_their_names(family):
    assert "experts" in (neurons_reason(CONFIG_MAPPING[family]()) or "")


def test_a_width_that_differs_between_layers_is_no_number():
    assert n_neurons(CONFIG_MAPPING["gemma3n_text"]()) is None
