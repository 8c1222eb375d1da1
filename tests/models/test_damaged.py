"""Damaged checkpoints: one line that names the file, before anything is waited for or counted to the end."""

import json
import os
import random
import shutil
import warnings

import pytest
import transformers
from helpers.damage import (
    JSON_FILES,
    KINDS,
    VALUES,
    damaged_checkpoints,
    damaged_weights,
    make_kind,
    places,
    read_tensors,
    replaced,
    write_tensors,
)
from helpers.tokenizer_kinds import tokenizer
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from igap import InputError, load_model
from igap.cli import main
from igap.inputs.tokenizing import token_ids
from igap.models import files, patterns
from igap.models.load import read_header, read_tokenizer
from igap.models.patterns import check_patterns
from igap.models.quiet import as_input_error, hold_stderr, silence_libraries

LLAMA_3 = next(each for each in patterns.KNOWN if "{1,3}" in each)


@pytest.fixture(scope="session")
def whole(checkpoint, tmp_path_factory):
    """A one-layer Llama with a byte-level tokenizer, a pattern in it, and each of a checkpoint's JSON files."""
    folder = tmp_path_factory.mktemp("whole") / "checkpoint"
    shutil.copytree(checkpoint("llama", 1), folder)
    tokenizer("byte_level").save_pretrained(folder)
    own = json.loads((folder / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": LLAMA_3}, "behavior": "Isolated", "invert": False}
    own["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, own["pre_tokenizer"] | {"use_regex": False}]}
    (folder / "tokenizer.json").write_text(json.dumps(own))
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    (folder / "added_tokens.json").write_text(json.dumps({"<s>": 1}))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    header, _ = read_tensors(folder / "model-00001-of-00001.safetensors")
    named = dict.fromkeys((key for key in header if key != "__metadata__"), "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": named}))
    return folder


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(whole, tmp_path / "copy")


def set_to(folder, file, place, text):
    """The file with this JSON text at the place, which may be a new key."""
    value = json.loads((folder / file).read_text())
    parent = value
    for key in place[:-1]:
        parent = parent[key]
    if place and isinstance(parent, dict):
        parent.setdefault(place[-1], None)
    (folder / file).write_text(replaced(value, place, text))


def refusal(call, *arguments):
    with pytest.raises(InputError, match=r"^model\.name: got ") as refused:
        call(*arguments)
    message = str(refused.value)
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < 600
    return message


def test_the_checkpoint_is_read_while_it_is_whole(whole):
    assert read_header(str(whole)).n_layers == 1
    assert set(JSON_FILES) - {path.name for path in whole.iterdir()} == {"vocab.json"}


def test_any_value_of_any_field_is_taken_or_refused_in_one_line_that_names_the_file(whole, copied, capfd):
    values = {file: json.loads((whole / file).read_text()) for file in JSON_FILES if (whole / file).exists()}
    cases = [(file, place, what) for file in values for place in places(values[file]) for what in VALUES]
    seen = {"taken": 0, "refused": 0}
    for file, place, what in random.Random(0).sample(cases, 80):
        (copied / file).write_text(replaced(values[file], place, VALUES[what]), "utf-8")
        try:
            read_header(str(copied))
            seen["taken"] += 1
        except InputError as error:
            message = str(error)
            assert file in message.replace(str(copied), ""), (file, place, what)
            assert message.isprintable(), (file, place, what)
            seen["refused"] += 1
        shutil.copy(whole / file, copied / file)
    assert min(seen.values()) > 5
    assert capfd.readouterr().err == ""


def test_the_generator_leaves_nothing_out_and_damages_one_file_at_a_time(whole, tmp_path):
    described = []
    for what, folder in damaged_checkpoints(whole, tmp_path, {"5": "5"}):
        described.append(what)
        if len(described) % 9 == 0:
            changed = {path.name for path in whole.iterdir() if not is_same(path, folder / path.name)}
            assert changed == {what.partition(":")[0]}, what
    assert len(described) == len(set(described))
    assert {what.partition(":")[0] for what in described} == {path.name for path in whole.iterdir()}


def is_same(one, other):
    return other.is_file() and not other.is_symlink() and one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "UTF-16"])
def test_what_is_no_whole_file_is_refused_and_not_waited_for(copied, whole, kind):
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"):
        make_kind(copied / file, kind)
        assert f": {file}: " in refusal(read_header, str(copied))
        shutil.rmtree(copied)
        shutil.copytree(whole, copied)
    weights = "model-00001-of-00001.safetensors"
    make_kind(copied / weights, kind)
    assert f": {weights}: " in refusal(read_header, str(copied))


def test_a_file_without_an_end_that_memory_holds_is_refused(copied):
    with (copied / "tokenizer_config.json").open("r+b") as file:
        file.truncate(2**40)  # takes no place on the disk
    assert "tokenizer_config.json: it has 1,099,511,627,776 bytes, more than" in refusal(read_header, str(copied))


def test_damaged_headers_of_weights_are_refused_and_the_file_is_named(whole, copied):
    path = copied / "model-00001-of-00001.safetensors"
    # What they hold, and whose it is, is seen when the weights load.
    later = ("numbers", "turned shape", "another name", "made by", "without a description", "all ")
    for what in damaged_weights(path):
        if any(part in what for part in later):
            continue
        assert f": {path.name}: " in refusal(files.read_tensor_headers, copied, "copy"), what


@pytest.mark.parametrize("dtype", ["I32", "U32"])
def test_whole_numbers_are_no_weights(copied, dtype):
    path = copied / "model-00001-of-00001.safetensors"
    header, data = read_tensors(path)
    header["model.layers.0.mlp.up_proj.weight"]["dtype"] = dtype
    write_tensors(path, json.dumps(header).encode(), data)
    assert f": {path.name}: model.layers.0.mlp.up_proj.weight is {dtype}, wanted" in refusal(load_model, str(copied))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_hidden_layers", 10**9, "num_hidden_layers is 1000000000, wanted a size that weights can have"),
        ("num_hidden_layers", 10**6, "it says 1000000 layers, but the weights are 12 tensors"),
        ("layer_types", [[["a"], 10**9]], "layer_types is 1000000000, wanted a size"),
        ("vocab_size", 10**6, "it says 1000000 tokens, but no tensor of the weights has as many"),
        ("intermediate_size", 10**7, r"its sizes ask for \d+ numbers, but the weights have \d+"),
        (
            "intermediate_size",
            47,
            r"not those of its config.json: .* is \[\d+, \d+\] in model-00001-of-00001.safetensors, and config",
        ),
        ("num_attention_heads", -1, "config.json: .*num_attention_heads"),
        ("architectures", [5], "config.json: architectures is '\\[5\\]', wanted a list of names"),
    ],
)
def test_sizes_that_are_not_those_of_the_weights_are_refused_before_memory_is_taken(copied, field, value, message):
    set_to(copied, "config.json", (field,), json.dumps(value))
    with pytest.raises(InputError, match=message):
        load_model(str(copied))


def test_lengths_and_bases_of_positions_may_be_any_number(copied):
    set_to(copied, "config.json", ("max_position_embeddings",), str(10**9))
    set_to(copied, "config.json", ("rope_parameters", "rope_theta"), "1e12")
    assert read_header(str(copied)).n_ctx == 10**9


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (r'{"a": "../other.safetensors"}', "it names '../other.safetensors', no file here"),
        ("{}", "it names no file"),
        ('{"a": 5}', "its weight_map is no object"),
        ("[]", "its weight_map is no object"),
    ],
)
def test_an_index_of_other_files_than_those_of_the_folder_is_refused(copied, text, said):
    (copied.parent / "other.safetensors").write_bytes((copied / "model-00001-of-00001.safetensors").read_bytes())
    set_to(copied, "model.safetensors.index.json", ("weight_map",), text)
    assert f": model.safetensors.index.json: {said}" in refusal(read_header, str(copied))


def test_an_index_described_by_a_number_is_refused(copied):
    set_to(copied, "model.safetensors.index.json", ("metadata",), "5")
    assert ": model.safetensors.index.json: its metadata is no object" in refusal(read_header, str(copied))


def test_weights_that_the_config_names_are_those_of_the_folder_or_refused(copied):
    set_to(copied, "config.json", ("transformers_weights",), '"model-00001-of-00001.safetensors"')
    assert {each.file for each in read_header(str(copied)).stored.values()} == {"model-00001-of-00001.safetensors"}
    (copied.parent / "other.safetensors").write_bytes((copied / "model-00001-of-00001.safetensors").read_bytes())
    for elsewhere in ("../other.safetensors", str(copied.parent / "other.safetensors"), [["list"]]):
        set_to(copied, "config.json", ("transformers_weights",), json.dumps(elsewhere))
        assert ": config.json: it names " in refusal(read_header, str(copied))


def test_settings_for_generation_are_named_where_they_are_damaged(copied):
    (copied / "generation_config.json").write_text("[]")
    assert "whose weights cannot be read: generation_config.json: " in refusal(load_model, str(copied))


PATTERN = ("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex")


@pytest.mark.parametrize("pattern", [r"(.*)*\d", r"(\w+\s?)*[!?]", ""])
def test_a_pattern_that_does_not_end_or_fails_is_refused(copied, pattern, monkeypatch):
    monkeypatch.setattr(patterns, "_SECONDS", 2.0)  # which are waited for
    set_to(copied, "tokenizer.json", PATTERN, json.dumps(pattern))
    if pattern:
        assert f"tokenizer.json: its pattern {pattern!a} does not end on" in refusal(read_header, str(copied))
        with pytest.raises(InputError, match=r"^ids_of: got .*, whose tokenizer cannot .* does not end on"):
            read_tokenizer(str(copied), item="ids_of")
    else:  # it cuts between all letters, which is no mistake
        read_header(str(copied))


def test_a_pattern_is_stopped_when_its_time_is_over(monkeypatch):
    monkeypatch.setattr(patterns, "_SECONDS", 0.5)
    monkeypatch.setattr(patterns, "_TEXTS", ["a" * 3_000_000])  # cut into letters, it takes many seconds
    assert patterns._find_endless.__wrapped__(frozenset({r"\w"})) == r"\w"


def test_patterns_of_known_models_end_and_are_not_tried_for_a_run(copied, monkeypatch):
    assert patterns._find_endless(patterns.KNOWN) is None
    patterns._find_endless.cache_clear()
    monkeypatch.setattr(patterns.sys, "executable", "/no/python")
    check_patterns(copied, "copy")


def test_a_machine_that_cannot_try_a_pattern_is_at_fault_and_not_the_pattern(monkeypatch):
    monkeypatch.setattr(patterns.sys, "executable", shutil.which("false"))
    with pytest.raises(OSError, match="which was to try the patterns of a tokenizer, did not start"):
        patterns._find_endless.__wrapped__(frozenset({r"\w"}))


def test_a_pattern_is_tried_without_the_modules_of_the_working_folder(copied, monkeypatch, tmp_path):
    for module in ("tokenizers", "json"):
        (copied / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    monkeypatch.chdir(copied)
    set_to(copied, "tokenizer.json", PATTERN, json.dumps(r"\w+|\W"))
    check_patterns(copied, ".")
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_that_leaves_merges_out_by_chance_is_refused(copied):
    set_to(copied, "tokenizer.json", ("model", "dropout"), "0.5")
    assert "tokenizer.json: its dropout is 0.5, with which" in refusal(read_header, str(copied))


def test_a_text_on_which_the_tokenizer_fails_is_one_line():
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"Then": 0}, unk_token="<unk>"))
    assert "fails on 'Now': tokenizer.json: WordLevel error" in refusal(
        token_ids, PreTrainedTokenizerFast(tokenizer_object=raw), "Now"
    )


def test_the_command_line_prints_one_line_also_where_rust_panics(copied, capfd):
    set_to(copied, "tokenizer.json", ("model", "continuing_subword_prefix"), r'"a\u0000b"')
    assert main(["run", "model=hf", f"model.name={copied}"]) == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"igap: model.name: got '{copied}', which cannot be read as a checkpoint: tokenizer.json")


def test_a_library_that_prints_a_whole_config_where_it_fails_is_not_heard(copied, capfd):
    set_to(copied, "config.json", ("sub_configs",), "5")
    assert ": config.json: " in refusal(read_header, str(copied))
    assert capfd.readouterr().err == ""


def test_what_is_said_where_nothing_fails_is_heard(capfd):
    with hold_stderr():
        os.write(2, b"advice\n")
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err == "advice\n"


def test_an_error_is_shown_without_what_a_terminal_cannot_show():
    with pytest.raises(InputError) as refused, as_input_error(InputError):
        raise ValueError("a\ud800\n \x1b[31mb" + "c" * 1000)
    assert str(refused.value) == r"a\ud800 \x1b[31mb" + "c" * (199 - len("a\ud800 \x1b[31mb")) + "…"
    with pytest.raises(KeyboardInterrupt), as_input_error(InputError):
        raise KeyboardInterrupt


def test_warnings_are_given_after_what_they_are_about_and_not_where_it_fails():
    with pytest.warns(UserWarning, match="kept"), silence_libraries():
        warnings.warn("kept", stacklevel=1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(InputError), silence_libraries():
            warnings.warn("dropped", stacklevel=1)
            raise InputError("why")
    assert not said


def test_a_model_is_not_built_twice_where_its_sizes_are_like_those_of_the_weights(whole, monkeypatch):
    header = read_header(str(whole))
    header.config.max_position_embeddings = 10**9  # gives no weight its size
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_config", None)
    files.check_allocation(header.config, header.stored, "whole")


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_params", 124_439_808), ("total_flos", 10**18), ("attn_implementation", "flash_attention_2")],
)
def test_settings_that_give_nothing_its_size_may_be_anything(copied, field, value):
    set_to(copied, "config.json", (field,), json.dumps(value))
    set_to(copied, "config.json", ("rope_theta",), "1000000")
    assert load_model(copied).cfg.n_layers == 1


def test_an_attention_that_this_machine_lacks_is_not_needed_to_count_the_weights_of_a_config(copied):
    set_to(copied, "config.json", ("attn_implementation",), '"flash_attention_2"')
    set_to(copied, "config.json", ("number_of_my_own",), str(10**9))  # larger than any weight: the model is built
    assert load_model(copied).cfg.n_layers == 1


def test_files_that_no_library_reads_may_be_anything(copied):
    with (copied / "train.txt").open("wb") as file:
        file.truncate(2**28)
    (copied / "eval.json").mkdir()
    (copied / "README.txt").symlink_to("nowhere")
    assert read_header(str(copied)).n_layers == 1


def test_a_vocabulary_without_a_token_for_unknown_words_is_one(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("gpt2"), tmp_path / "copy")
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({character: i for i, character in enumerate("0123456789+=")}))
    ).save_pretrained(folder)
    assert token_ids(read_header(str(folder)).tokenizer, "7") == [7]


@pytest.mark.parametrize("stream", ["full", "closed"])
def test_a_terminal_that_takes_nothing_damages_no_checkpoint(stream):
    before = os.dup(2)
    target = os.open("/dev/full", os.O_WRONLY) if stream == "full" else os.pipe()[1]
    os.dup2(target, 2)
    try:
        with hold_stderr():
            os.write(2, b"a warning")
    finally:
        os.dup2(before, 2)
