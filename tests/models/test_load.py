"""The loader: any folder, both numerics, and nothing loaded that is not whole."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from helpers.checkpoints import save_checkpoint
from safetensors.torch import load_file, save_file

from igap import load_model
from igap.inputs.prompts import tokenize
from igap.models import load
from igap.models.load import read_header

FLOAT32 = 5e-6  # some tens of roundings of numbers near 1


@pytest.fixture
def copied(checkpoint, tmp_path):
    """A copy of the small GPT-2's folder, to be broken."""
    return shutil.copytree(checkpoint("gpt2"), tmp_path / "copy")


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("processing", ["processed", "raw"])
def test_a_folder_gives_the_models_own_probabilities(checkpoint, pair, architecture, processing):
    from transformers import AutoModelForCausalLM

    folder = checkpoint(architecture)
    model = load_model(str(folder), processing=processing, dtype="float64")
    tokens = model.to_tokens(pair.clean)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        ours, wanted = model(tokens).log_softmax(-1), theirs(tokens).logits.log_softmax(-1)
    # TransformerLens folds weights in float32, and Hugging Face's Llama computes its norms in it, whatever the dtype.
    exact = processing == "raw" and architecture != "llama"
    torch.testing.assert_close(ours, wanted, atol=1e-10 if exact else FLOAT32, rtol=0)
    assert not model.training


def test_processing_keeps_logit_differences_and_neurons(small, pair):
    processed, raw = small("gpt2", "processed"), small("gpt2", "raw")
    tokens = tokenize(raw, pair)
    caches = {}
    for model in (processed, raw):
        with torch.no_grad():
            logits, caches[model] = model.run_with_cache(tokens.clean)
        caches[model, "diff"] = (logits[0, -1, tokens.answer] - logits[0, -1, tokens.distractor]).item()
    assert caches[processed, "diff"] == pytest.approx(caches[raw, "diff"], abs=FLOAT32)
    mlp = "blocks.1.mlp.hook_post"
    torch.testing.assert_close(caches[processed][mlp], caches[raw][mlp], atol=FLOAT32, rtol=0)


def test_value_biases_are_folded_out_of_z(pair):
    caches = {}
    for processing in ("processed", "raw"):
        model = load_model(processing=processing)
        with torch.no_grad():
            caches[processing] = model.run_with_cache(model.to_tokens(pair.clean))[1]
    difference = caches["raw"]["blocks.0.attn.hook_z"] - caches["processed"]["blocks.0.attn.hook_z"]
    assert difference.abs().max() > 1e-3
    # One constant a head: the same at every position.
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference), atol=1e-5, rtol=0)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"model\.name: got '.*', a folder without config\.json, wanted a Hugging Face"
    ):
        load_model(str(tmp_path))
    with pytest.raises(ValueError, match=r"model\.name: got './no/such', which is no folder\. Use model=ioi-mini, mod"):
        load_model("./no/such")


def test_a_checkpoint_without_safetensors_is_refused(copied):
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"a checkpoint without \*\.safetensors; igap unpickles nothing\. Convert it"):
        load_model(str(copied))


def test_nothing_is_unpickled_also_where_a_safetensors_file_lies_beside(copied):
    from transformers import AutoModelForCausalLM

    weights = AutoModelForCausalLM.from_pretrained(copied).state_dict()
    (copied / "model.safetensors").rename(copied / "other.safetensors")
    torch.save(weights, copied / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"cannot be read as a checkpoint: model\.safetensors: there is none"):
        load_model(str(copied))


def test_code_of_a_checkpoint_is_never_run(copied, tmp_path):
    config = json.loads((copied / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Own: ...\n")
    with pytest.raises(ValueError, match=r"which cannot be read as a checkpoint: .*custom code"):
        load_model(str(copied))
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_without_all_weights_is_refused_and_not_filled_with_random_ones(copied):
    weights = load_file(copied / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"a checkpoint without 1 of the model's weights \(transformer\.h\.1\.mlp\.c_fc"
    ):
        load_model(str(copied))


def test_weights_cut_short_are_refused(copied):
    whole = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.name: got '.*', which cannot be .*: model\.safetensors: Error"):
        load_model(str(copied))


def test_a_folder_with_an_unknown_architecture_is_refused_in_one_line(copied):
    (copied / "config.json").write_text('{"model_type": "perceptron"}')
    with pytest.raises(ValueError, match=r"model\.name: got '.*', which cannot be read as a checkpoint: ") as refused:
        load_model(str(copied))
    assert "\n" not in str(refused.value)


def test_unknown_processing_is_refused(checkpoint, unchecked):
    with pytest.raises(ValueError, match=r"^processing: got 'cooked', wanted processed or raw\."):
        load_model(str(checkpoint("gpt2")), processing="cooked")


def test_a_hub_name_is_taken_from_the_cache_and_the_network_asked_only_without_it(copied, monkeypatch):
    asked = []

    def snapshot_download(name, *, local_files_only, **_):
        asked.append((name, local_files_only))
        if local_files_only and not cached:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        return str(copied)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    cached = True
    assert load.find_checkpoint("someone/model") == copied
    assert asked == [("someone/model", True)]
    cached = False
    assert load.find_checkpoint("someone/model") == copied
    assert asked[1:] == [("someone/model", True), ("someone/model", False)]


def test_a_cached_snapshot_without_weights_is_completed_from_the_hub(copied, tmp_path, monkeypatch):
    partial = tmp_path / "partial"
    partial.mkdir()
    (partial / "config.json").write_text("{}")

    def snapshot_download(name, *, local_files_only, **_):
        return str(partial if local_files_only else copied)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load.find_checkpoint("gpt2") == copied


@pytest.mark.parametrize(("architecture", "n_neurons"), [("gpt2", 48), ("llama", 48), ("opt", 48)])
def test_the_header_knows_the_shape_before_the_weights_load(checkpoint, architecture, n_neurons):
    header = read_header(str(checkpoint(architecture)))
    assert (header.n_layers, header.n_heads, header.n_neurons) == (3, 4, n_neurons)


def test_gpt2s_null_of_neurons_is_four_times_the_residual_stream(tmp_path):
    save_checkpoint("gpt2", 1, tmp_path, n_inner=None)
    assert read_header(str(tmp_path)).n_neurons == 4 * 32
