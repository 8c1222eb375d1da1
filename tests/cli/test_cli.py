"""The command line as a user meets it: exit codes, messages, files. Bad input costs one line and no traceback."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.small_disk import no_file_above
from huggingface_hub import constants
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file, save_file

from igap import cli, pipeline
from igap.cli import commands, compose, settings
from igap.cli.texts import quote_override
from igap.engine.baselines import baseline_of
from igap.errors import InputError
from igap.inputs.ioi import generate_ioi
from igap.models import cached
from igap.output import disk
from igap.sweep.plan import RejectedJob

pytestmark = pytest.mark.usefixtures("one_model")

BRIEF = ["sites=heads", "curves.components=none", "explain=false", "plots=none"]
"""For a run of which a test looks at neither the neurons nor what follows the comparison, nor at pictures."""
PAIR_OF_ANIMALS = "After the cat and the dog went to the store, Mary gave a bottle of milk to"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Every command runs in an empty folder, and leaves nothing of Hydra's state behind."""
    monkeypatch.chdir(tmp_path)
    yield
    GlobalHydra.instance().clear()


@pytest.fixture
def no_model(monkeypatch):
    """Nothing is loaded, nor may be."""
    cached._cached_model.cache_clear()
    monkeypatch.setattr(cached, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))


@pytest.fixture
def tiny(checkpoint) -> list[str]:
    """Overrides for a random model, without W&B."""
    return ["model=hf", f"model.name={checkpoint('gpt2')}", "tracking=disabled", "prompts.min_gap=0", "device=cpu"]


def only_run(folder: Path = Path("runs")) -> Path:
    (found,) = folder.iterdir()
    return found


BAD = [
    (["walk"], f"command: got 'walk', wanted one of {', '.join(commands.igap.commands)}. igap --help shows them."),
    (["rum"], f"command: got 'rum', wanted one of {', '.join(commands.igap.commands)}. Did you mean run?"),
    (["run", "--nope"], "option: got '--nope', which igap run does not have, wanted KEY=VALUE or one of --"),
    (["run", "basline=zero"], "basline: got a key that no run has (in 'basline=zero'). Did you mean baseline?"),
    (["run", "+ig.steps=5"], "ig.steps: got a key that no run has (in '+ig.steps=5'). Did you mean ig.n_steps?"),
    (["run", "++ig.steps=5"], "ig.steps: got a key that no run has"),
    (["run", "+nonsense.a=5"], "nonsense.a: got a key that no run has"),
    (["run", "+ig.n_steps=5"], "ig.n_steps: got '+ig.n_steps=5', but every run has that key. Write 'ig.n_steps=5'"),
    (["run", "~ig"], "ig: got a deletion ('~ig'); a run needs every key."),
    (["run", "prompts=null"], "prompts: got None, wanted one of capital-country, file, "),
    (["run", "--experimental-rerun", "x"], "option: got '--experimental-rerun', which igap run does not have,"),
    (["run", "--cfg", "jobs"], "--cfg: got 'jobs', wanted one of job, hydra, all. igap run --help says"),
    (["run", "--cfg"], "--cfg: got nothing, wanted a value. igap run --help shows what it takes."),
    (["run", "-m", "--cfg", "job"], "--multirun: got it with --cfg or --info, which show one config. Leave it out."),
    (["run", "--resolve"], "--resolve: got it without --cfg. Add --cfg job."),
    (["run", "--cfg", "job", "-p", "nope"], "--package: got 'nope', which --cfg job does not have. Name a group, such"),
    (["--version=3"], "--version: got a value, wanted none. Write --version."),
    (["run", "--multirun=yes"], "--multirun: got a value, wanted none. Write --multirun."),
    (["run", "--config-path", "x"], "option: got '--config-path', which igap run does not have,"),
    (["run", "--config-dir", "nowhere"], "--config-dir: got 'nowhere', wanted a folder of config groups."),
    (["run", "ablation=base"], "ablation: got 'base', wanted one of mean, mean_positional, none, resample, zero."),
    (["run", "search/space=words"], "search/space: got a key that no run has (in 'search/space=words')."),
    (["run", "search=x"], "search: got a key that no run has (in 'search=x')."),
    (["--nope"], "option: got '--nope', which igap does not have, wanted one of --version, --help. igap --help shows"),
    (["sweep", "search_mini"], "sweep: got 'search_mini', which is a search, wanted a grid. Use igap search s"),
    (["run", "--cfg", "job", "baseline=zeros"], "baseline: got 'zeros', wanted one of corrupted,"),
    (["run", "--config-name", "nope"], "config: Cannot find primary config 'nope'."),
    (["sweep", "baselines", "--cfg", "job"], "option: got '--cfg', which igap sweep does not have, wanted NAME or"),
    (["run", "ig.n_steps=ten"], "ig.n_steps: got 'ten', wanted a whole number from 1 to 1000000, or auto. Try"),
    (["run", "ig.n_steps=2.5"], "ig.n_steps: got 2.5, wanted a whole number from 1 to 1000000, or auto."),
    (["run", "ig.n_steps=true"], "ig.n_steps: got True, wanted a whole number from 1"),
    (["run", "ig.n_steps=0"], "ig.n_steps: got 0, wanted a whole number from 1 to 1000000, or auto."),
    (["run", "ig.n_steps=2001"], "ig.n_steps: got 2001, wanted at most 2000 with ig.method=gausslegendre"),
    (["run", "ig.n_steps=1", "ig.method=riemann_left"], "ig.n_steps: got 1, wanted at least 2 with ig.method=riemann"),
    (["run", "ig.n_steps=auto", "ig.path=single"], "ig.n_steps: got auto with ig.path=single, wanted a number there."),
    (["run", "ig.n_steps=1,2"], "ig.n_steps: got 2 values (1, 2), wanted one. Add -m to run each of them"),
    (["run", "--cfg", "job", "metric=logit_diff,kl"], "metric: got several with --cfg or --info, which show one"),
    (["run", "metric=logit_diff,lk"], "metric: got 'lk', wanted one of"),
    (["plot", ""], "folders: got nothing, wanted RUN.... igap plot --help shows what it takes."),
    (["compare", "runs", ""], "folders: got nothing, wanted DIR.... igap compare --help shows what it takes."),
    (["run", "ablation.file=[a.json,b.json]"], "ablation.file: got the list [a.json,b.json], wanted one text."),
    (["run", "prompts.file={a: 1}"], "prompts.file: got '{a: 1}', wanted the name of one file. Write its rows into a"),
    (["run", "ig.method=simpson"], "ig.method: got 'simpson', wanted one of 'gausslegendre', 'riemann_left'"),
    (["run", "ig.method=riemann_trapezoid"], "wanted a method whose weights sum to 1"),
    (["run", "ig.path=both"], "ig.path: got 'both', wanted one of 'joint' or 'single'."),
    (["run", "baseline=zeros"], "baseline: got 'zeros', wanted one of corrupted, mean, prompt, zero, zero_input. "
                                "Did you mean zero?"),
    (["run", "-m", "baseline=zero,nothing"], "baseline: got 'nothing', wanted one of corrupted,"),
    (["run", "baseline=prompt"], "baseline.prompt: got nothing, wanted a value. Add baseline.prompt='When Tom"),
    (["run", "ablation=maen"], "ablation: got 'maen', wanted one of mean, mean_positional, none, resample, zero. Did"),
    (["run", "direction=denoising", "baseline=zero"], "baseline: got zero with direction=denoising, wanted corrupted"),
    (["run", "device=tpu"], "device: got 'tpu', wanted auto, cpu, cuda, cuda:N or mps. Try device=auto."),
    (["run", "model=hf"], "model.name: got nothing, wanted a value. Add model.name=gpt2."),
    (["run", "model=hf", "model.name=./no/such"], "model.name: got './no/such', which is no folder. Use model="),
    (["run", "model=hf", "model.name=."], "model.name: got '.', a folder without config.json, wanted a Hugging Face"),
    (["run", "model.processing=cooked"], "model.processing: got 'cooked', wanted one of 'processed' or 'raw'."),
    (["run", "prompts.n=1"], "prompts.n: got 1, wanted at least 2. Try prompts.n=100."),
    (["run", "prompts.n=many"], "prompts.n: got 'many', wanted a whole number. Try prompts.n=100."),
    (["run", "prompts=file"], "prompts.file: got nothing, wanted a value. Add prompts.file=pairs.csv."),
    (["run", "prompts.file=no.csv"], "prompts.file: got no.csv, which cannot be read (No such file or directory)."),
    (["run", "prompts=generated", "prompts.file=a.csv"], "prompts.file: got 'a.csv' together with prompts.n=100, "),
    (["run", "prompts.n=5", "prompts.answer= John"], "prompts.answer: got ' John' together with prompts.n, wanted one"),
    (["run", "prompts.file=a.csv", "prompts.clean=a, b"], "prompts.clean: got 'a, b' together with prompts.file, "),
    (["run", "prompts=generated", "prompts.n=null"], "prompts.clean: got nothing, wanted a text. Try prompts.clean='W"),
    (["run", "ig.n_steps"], "ig.n_steps: got 'ig.n_steps', which is no override"),
    (["sweep", "basslines"], "sweep: got 'basslines', wanted one of ablations, baselines, head_curves, ig_steps, "
                             "notebook, prompts, results, results_zero. Did you mean baselines?"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_bad_input_is_one_clear_line_and_exit_code_2(arguments, message, capsys):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("igap: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not Path("runs").exists(), "refused before anything was written"


ALL_FOUR = ["prompts.corrupted=After Tom and Mary went to the store, Mary gave a bottle of milk to",
            "prompts.answer= John", "prompts.distractor= Mary"]  # fmt: skip
BAD_PROMPTS = [
    (["prompts.corrupted=" + PAIR_OF_ANIMALS],
     "prompts.corrupted: got 18 tokens, prompts.clean has 16 (without the token before every prompt); patching "
     "needs prompts of one length."),
    (["prompts.corrupted=After John and Mary went to the store, Mary gave a bottle of milk to"],
     "prompts.corrupted: got the same text as prompts.clean"),
    (["prompts.answer=John Mary"], "prompts.answer: got 'John Mary', which is 2 tokens"),
    (["prompts.answer= Zebulon"], "prompts.answer: the tokenizer does not know 'Zebulon'"),
    ([*ALL_FOUR, "prompts.clean=After Zebulon and Mary went to the store, Mary gave a bottle of milk to"],
     "prompts.clean: the tokenizer does not know 'Zebulon'"),
    (["prompts.answer= Mary"], "prompts.distractor: got ' Mary', the same word as prompts.answer"),
    ([*ALL_FOUR, "prompts.clean=" + "John " * 30, "prompts.corrupted=" + "Mary " * 30],
     "prompts.clean: got 30 tokens and the token before every prompt, the model's context holds 24."),
    ([*ALL_FOUR, "prompts.clean=" + "John " * 24, "prompts.corrupted=" + "Mary " * 24],
     "prompts.clean: got 24 tokens and the token before every prompt, the model's context holds 24."),
    (["prompts.clean="], "prompts.clean: got '', wanted a text that is not empty."),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), BAD_PROMPTS)
def test_a_bad_pair_is_refused_before_the_model_loads(no_model, tiny, overrides, message, capsys):
    assert cli.main(["run", *tiny, *overrides]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"igap: {message}")
    assert "Traceback" not in error
    assert not Path("runs").exists(), "refused before anything was written"


NEW_CLEAN = "prompts.clean=After Tom and Anna went to the store, Anna gave a bottle of milk to"
LEFT = ("prompts.corrupted='After John and Mary went to the store, John gave a bottle of milk to', "
        "prompts.answer=' John', prompts.distractor=' Mary'")  # fmt: skip


@pytest.mark.parametrize("command", [["run"], ["run", "-m"], ["check"], ["check", "-m"], ["search", "head=1.2"]])
def test_a_new_clean_prompt_with_other_texts_of_the_preset_is_refused(no_model, command, capsys):
    assert cli.main([*command, NEW_CLEAN]) == 2
    clean = NEW_CLEAN.partition("=")[2]
    assert capsys.readouterr().err.endswith(
        f"prompts.clean: got {clean!r}, and from the preset {LEFT}, wanted all four texts of the question: a preset's "
        "answer need not be that of another clean prompt. Add prompts.corrupted=... prompts.answer=... "
        "prompts.distractor=...; repeat what you mean to keep.\n"
    )
    assert not Path("runs").exists()


@pytest.mark.parametrize("left", ["corrupted", "answer", "distractor"])
def test_a_new_clean_prompt_needs_each_of_the_other_texts(left):
    others = [f"prompts.{name}= Tom" for name in ("corrupted", "answer", "distractor") if name != left]
    with pytest.raises(InputError, match=rf"from the preset prompts\.{left}='[^']+', wanted .* Add prompts\.{left}="):
        compose.compose_one([quote_override(text) for text in (f"++{NEW_CLEAN}", *others)])


def test_other_corrupted_prompts_and_words_are_asked_of_the_same_clean_prompt(tiny):
    for text in ("corrupted='After Tom and Mary went'", "answer=' Tom'", "distractor=' Tom',' Anna'", "clean=null"):
        jobs = compose.compose_jobs([*tiny, f"prompts.{text}", *(["prompts=generated"] if "null" in text else [])])
        assert not any(isinstance(job, RejectedJob) for job in jobs)


def test_a_bad_pair_of_a_file_is_refused_by_its_row_before_the_model_loads(no_model, tiny, capsys):
    Path("my pairs.csv").write_text("clean,corrupted,answer,distractor\nJohn,Mary,Tom,Anna\nJohn,Zebulon,Tom,Anna\n")
    assert cli.main(["run", *tiny, "prompts.file=my pairs.csv"]) == 2
    assert capsys.readouterr().err.startswith(
        "igap: my pairs.csv, row 2 (line 3): corrupted: the tokenizer does not know 'Zebulon' (in 'Zebulon')."
    )
    assert not Path("runs").exists()


def test_a_tokenizer_without_the_generators_words_is_refused_before_the_model_loads(no_model, tiny, capsys):
    assert cli.main(["run", *tiny, "prompts.n=5"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("igap: prompts.n: got 5, whose generated prompts this model cannot take (generated pair 0:")
    assert error.count("\n") == 1


def test_generated_pairs_run_as_they_are_on_the_embedded_model(capsys):
    assert cli.main(["run", *BRIEF, "prompts.n=3", "seed=2", "ig.n_steps=3", "tracking=disabled", "device=cpu"]) == 0
    assert "3 pairs (generated, seed 2)" in capsys.readouterr().out
    summary = json.loads((only_run() / "summary.json").read_text())
    assert (summary["n_pairs"], summary["prompts/n"], summary["prompts/seed"]) == (3, 3, 2)
    assert load_file(only_run() / "attributions.safetensors")["pairs.ig.heads"].shape == (3, 4, 8)
    with (only_run() / "pairs.csv").open(newline="") as file:
        clean = [row["clean"] for row in csv.DictReader(file)]
    assert clean == [example.clean for example in generate_ioi(3, 2)]


def test_sources_of_pairs_can_be_swept(tiny, pair_file):
    assert cli.main(["run", "-m", *tiny, *BRIEF, "ig.n_steps=2", f"prompts.file=null,{pair_file}"]) == 0
    jobs = [json.loads(path.read_text()) for path in only_run().glob("*/summary.json")]
    assert sorted(job["n_pairs"] for job in jobs) == [1, 5]


def test_prompts_of_different_length_show_both_token_lists(tiny, capsys):
    cli.main(["run", *tiny, "prompts.corrupted=" + PAIR_OF_ANIMALS])
    error = capsys.readouterr().err
    assert "\n  clean:     After|John|and|Mary|went" in error
    assert "\n  corrupted: After|the|cat|and|the|dog|went" in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_cuda_is_refused(tiny, capsys):
    assert cli.main(["run", *tiny, "device=cuda"]) == 2
    assert capsys.readouterr().err == (
        "igap: device: got cuda, which this machine does not have. Use device=cpu or device=auto.\n"
    )


def test_an_unwritable_output_folder_is_refused(tiny, capsys):
    Path("taken").write_text("a file\n")
    assert cli.main(["run", *tiny, "output=taken"]) == 2
    assert capsys.readouterr().err.startswith("igap: output: got taken, wanted a folder that can be written to (")


def test_a_hub_name_without_a_network_names_the_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert cli.main(["run", "model=gpt2-small"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("igap: model.name: got 'gpt2', which is no folder here, is not in the local Hugging")
    assert "copy the checkpoint here and use model=hf model.name=FOLDER, or use model=ioi-mini." in error
    assert error.count("\n") == 1


def test_activations_that_are_not_finite_are_refused_by_layer(tiny, checkpoint, tmp_path, capsys):
    folder = tmp_path / "broken"
    folder.mkdir()
    for file in checkpoint("gpt2").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.1.mlp.c_fc.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert cli.main(["run", *tiny, f"model.name={folder}"]) == 2
    captured = capsys.readouterr()
    assert captured.err == (
        "load model\nigap: clean run: got NaN or infinity in layer 1 (neurons), wanted finite activations. Check the "
        "checkpoint, or use model.dtype=float32.\n"
    )
    assert captured.out == ""
    assert not (only_run() / "summary.json").exists()


def test_a_small_gap_keeps_the_effects_and_says_why_there_are_no_scores(tiny, capsys):
    assert cli.main(["run", *tiny, *BRIEF, "prompts.min_gap=1e6", "plots=all"]) == 0
    out = capsys.readouterr().out
    assert (
        "wanted at least prompts.min_gap=1000000.0 and 10% of |F(clean)|; scores (effect / gap) would explode and are "
        "missing" in " ".join(out.split())
    )
    saved = load_file(only_run() / "attributions.safetensors")
    assert saved["ap.heads"].isnan().all()
    assert saved["effect.ap.heads"].abs().max() > 0
    summary = json.loads((only_run() / "summary.json").read_text())
    assert summary["heads/bias"] is None
    assert summary["heads/bias/reason"] == "a score needs a gap of at least prompts.min_gap and a tenth of |F(clean)|"
    assert summary["heads/pearson"] is not None, "correlations do not change with the unit"


def test_a_swapped_answer_is_told_on_the_terminal_and_in_the_summary(capsys):
    swapped = ["prompts.answer= Mary", "prompts.distractor= John", "ig.n_steps=3", "tracking=disabled", "device=cpu"]
    assert cli.main(["run", *BRIEF, *swapped]) == 0
    told = (
        "prompts: the model prefers the distractor on the clean prompt (F = -5.40) and the answer on the corrupted one "
        "(F = +5.04): are answer and distractor swapped?"
    )
    assert f"warning: {told}" in " ".join(capsys.readouterr().out.split())
    assert told in json.loads((only_run() / "summary.json").read_text())["warnings"].splitlines()


def test_texts_with_commas_and_spaces_arrive_as_they_are(tiny):
    clean = "Then, John and Mary went to the store. Mary gave it to"
    overrides = [f"prompts.clean={clean}", "prompts.corrupted=" + clean.replace("Mary gave", "John gave")]
    overrides += ["prompts.answer= John", "prompts.distractor= Mary"]
    assert cli.main(["run", *tiny, *BRIEF, *overrides]) == 0
    summary = json.loads((only_run() / "summary.json").read_text())
    assert (summary["prompts/clean"], summary["prompts/answer"]) == (clean, " John")


@pytest.mark.parametrize("text", ["it's [a], {b}=c", "a\\", "${seed} $HOME", "null and void", "é 木 🙂", "-m x=1,2"])
def test_any_text_reaches_the_config_as_it_was_typed(text):
    config = compose.compose_one([quote_override(f"prompts.corrupted={text}")]).config
    assert config.prompts.corrupted == text


@pytest.mark.parametrize("folder", ["x_${nope}", "/proc/x"])
def test_a_folder_that_hydra_cannot_make_is_one_line(tiny, folder, capsys):
    assert cli.main(["run", *tiny, f"hydra.run.dir={folder}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("igap: hydra: ")
    assert error.count("\n") == 1


def test_a_finished_run_is_not_written_over(tiny, capsys):
    assert cli.main(["run", *tiny, *BRIEF, "hydra.run.dir=kept"]) == 0
    before = {path: path.read_bytes() for path in Path("kept").rglob("*") if path.is_file()}
    assert cli.main(["run", *tiny, *BRIEF, "ig.n_steps=3", "hydra.run.dir=kept"]) == 2
    assert "which holds a finished run (summary.json), wanted another folder" in capsys.readouterr().err
    # Not its config either, which would then be another run's.
    assert {path: path.read_bytes() for path in Path("kept").rglob("*") if path.is_file()} == before


def test_an_interrupted_multirun_shows_the_jobs_that_are_done(tiny, monkeypatch, capsys):
    run = pipeline.run

    def interrupted(config, *given):
        if config.ig.n_steps == 3:
            raise KeyboardInterrupt
        return run(config, *given)

    monkeypatch.setattr(pipeline, "run", interrupted)
    assert cli.main(["run", "-m", *tiny, *BRIEF, "ig.n_steps=2,3,4"]) == 130
    captured = capsys.readouterr()
    assert "1 of 3 jobs finished in " in captured.out
    assert "igap: interrupted" in captured.err


def test_baseline_kinds_can_be_swept_together_whatever_each_of_them_needs(tiny):
    other = "After Tom and Anna went to the store, Anna gave a bottle of milk to"
    overrides = ["ig.n_steps=2", "baseline=corrupted,zero", f"baseline.prompt={other}"]
    assert cli.main(["run", "-m", *tiny, *BRIEF, *overrides]) == 0
    jobs = compose.compose_jobs([*tiny, "baseline=corrupted,prompt", quote_override(overrides[-1])])
    assert [(job.config.baseline.kind, baseline_of(job.config.baseline).prompt) for job in jobs] == [
        ("corrupted", None), ("prompt", other),
    ]  # fmt: skip


def test_the_baselines_prompt_is_checked_before_the_model_loads(no_model, tiny, capsys):
    assert cli.main(["run", *tiny, "baseline=prompt", "baseline.prompt=After John"]) == 2
    assert capsys.readouterr().err.startswith("igap: baseline.prompt: got 2 tokens, prompts.clean has 16 (with")


def test_a_multirun_runs_every_combination_and_loads_the_model_once(tiny, monkeypatch, capsys):
    loaded = []
    cached._cached_model.cache_clear()
    load = cached.load_model
    monkeypatch.setattr(cached, "load_model", lambda *a, **k: loaded.append(1) or load(*a, **k))
    assert cli.main(["run", *tiny, *BRIEF, "baseline=corrupted,zero", "-m", "ig.n_steps=2,3"]) == 0
    jobs = [json.loads(path.read_text()) for path in only_run().glob("*/summary.json")]
    found = sorted((job["baseline"], job["ig/n_steps"]) for job in jobs)
    assert found == [("corrupted", 2), ("corrupted", 3), ("zero", 2), ("zero", 3)]
    assert loaded == [1]
    assert "4 jobs" in capsys.readouterr().out


def test_a_failed_job_costs_no_other_job(tiny, monkeypatch, capsys):
    run = pipeline.run

    def fail_once(config, *given):
        if config.ig.n_steps == 2:
            raise RuntimeError("a passing storm")
        return run(config, *given)

    monkeypatch.setattr(pipeline, "run", fail_once)
    assert cli.main(["run", "-m", *tiny, *BRIEF, "ig.n_steps=2,3"]) == 1
    assert [json.loads(path.read_text())["ig/n_steps"] for path in only_run().glob("*/summary.json")] == [3]
    captured = capsys.readouterr()
    assert "RuntimeError: a passing storm" in captured.out
    (story,) = only_run().glob("*/failure.log")
    assert "Traceback" in story.read_text()
    assert "Traceback" not in captured.err, "that is for the log"


@pytest.fixture
def uneven(tmp_path) -> list[str]:
    """An ablation that is found to be impossible by the prompts it draws: one of seven is longer than the others."""
    names = ["John", "Mary", "Tom", "Anna"]
    rows = [f"After {name} and John went to the store {name} gave a bottle to,Mary" for name in names[1:]] * 2
    file = tmp_path / "uneven.csv"
    file.write_text(
        "\n".join(["prompt,answer", *rows, "Then John and Tom and Mary went to the store and Tom gave it to,John"])
    )
    wanted = ["ablation=mean_positional", f"ablation.file={file}", "ablation.components=0.0", "ablation.reference_n=1"]
    return [*wanted, "ablation.also=[zero]", "ig.n_steps=2", "sites=heads"]


WHY = "ablation.reference_n: got 1 reference prompts, none of which reaches position"


def test_a_failed_follow_up_costs_no_other_finding_and_exit_code_1(tiny, uneven, capsys):
    assert cli.main(["run", *tiny, *uneven]) == 1
    captured = capsys.readouterr()
    assert captured.out.count(f"failed: ablation: {WHY}") == 1
    assert "How far IG and AP agree" in captured.out
    assert "Traceback" not in captured.out + captured.err
    summary = json.loads((only_run() / "summary.json").read_text())
    assert (summary["failed"], summary["ablation"]) == ("ablation", None)
    assert summary["ablation/reason"].startswith(WHY)
    assert summary["heads/pearson"] is not None
    assert summary["curves/components"]
    assert "Traceback" in (only_run() / "failure.log").read_text()


def test_a_job_with_a_failed_follow_up_is_failed_shown_with_its_numbers_and_tried_again(tiny, uneven, capsys):
    for _ in range(2):
        assert cli.main(["run", "-m", *tiny, *uneven, "plots=none"]) == 1
        out = " ".join(capsys.readouterr().out.split())
        assert f"s); failed: ablation: {WHY}" in out
        assert "0 of 1 job finished" in out
    assert cli.main(["status", "runs/multirun"]) == 1
    assert "1 job: 1 failed" in capsys.readouterr().out
    assert cli.main(["compare", "runs/multirun"]) == 0
    (folder,) = Path("runs/multirun").glob("*/summary.json")
    assert json.loads(folder.read_text())["heads/pearson"] is not None


def test_a_disk_that_fills_while_a_run_is_written_is_one_line_and_the_numbers_are_shown(tiny, monkeypatch, capsys):
    write = disk.write

    def on_a_small_disk(result, folder):
        with no_file_above(3000):
            return write(result, folder)

    monkeypatch.setattr(disk, "write", on_a_small_disk)
    assert cli.main(["run", *tiny, "ig.n_steps=2", "sites=heads", "explain=false"]) == 1
    captured = capsys.readouterr()
    assert "How far IG and AP agree" in captured.out
    assert "outliers among heads" in captured.out
    said = [line for line in captured.err.splitlines() if line.startswith("igap: ")]
    assert len(said) == 1
    assert ".csv cannot be written or read (File too large); what is above is not all written." in said[0]
    assert "Traceback" not in captured.err
    assert not list(Path("runs").rglob("summary.json*"))


def test_what_the_operating_system_refuses_is_one_line(monkeypatch, capsys):
    def refused(folders, *, watch):
        raise OSError(28, "No space left on device", "sweep.json")

    monkeypatch.setattr("igap.sweep.status.show_status", refused)
    assert cli.main(["status", "runs"]) == 1
    assert capsys.readouterr().err == "igap: sweep.json cannot be written or read (No space left on device)\n"


def test_sweeps_are_multiruns_whose_keys_can_be_replaced(tiny):
    assert (
        cli.main(
            ["sweep", "baselines", *tiny, *BRIEF, "baseline=corrupted,zero", "ig.method=riemann_left", "ig.n_steps=2"]
        )
        == 0
    )
    jobs = [json.loads(path.read_text()) for path in only_run().glob("*/summary.json")]
    assert sorted((job["baseline"], job["ig/n_steps"]) for job in jobs) == [("corrupted", 2), ("zero", 2)]


def test_a_sweep_may_list_its_values_as_yaml_does(tiny, tmp_path, monkeypatch):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mine.yaml").write_text("hydra: {sweeper: {params: {ig.n_steps: [2, 3]}}}")
    monkeypatch.setattr(settings, "SWEEPS", tmp_path / "sweeps")
    assert cli.main(["sweep", "mine", *tiny, *BRIEF]) == 0
    assert sorted(json.loads(path.read_text())["ig/n_steps"] for path in only_run().glob("*/summary.json")) == [2, 3]


def test_help_answers_in_a_second_and_imports_nothing_heavy():
    code = (
        "import sys, igap.cli; rc = igap.cli.main(['--help']); "
        "heavy = {'torch', 'transformers', 'wandb', 'optuna', 'hydra', 'pydantic', 'rich', 'matplotlib'}; "
        "heavy &= set(sys.modules); "
        "sys.exit(rc or ','.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: igap [OPTIONS] COMMAND" in done.stdout


@pytest.mark.usefixtures("forks")
def test_ctrl_c_leaves_nothing_that_looks_finished(tiny):
    process = subprocess.Popen(
        [sys.executable, "-m", "igap.cli", "run", *tiny, "ig.method=riemann_middle", "ig.n_steps=1000000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(Path("runs").glob("*/plots")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "igap: interrupted; a run without summary.json is not finished.\n" in error
    assert "Traceback" not in error
    assert [path.name for path in only_run().rglob("*") if path.suffix in (".json", ".safetensors", ".csv")] == []


def test_an_ablation_file_is_named_by_its_lines(no_model, tiny, capsys):
    Path("p.csv").write_text("prompt,answer\n\nJohn and,Mary\nJohn,Zebulon\n")
    assert cli.main(["run", *tiny, "ablation=zero", "ablation.file=p.csv"]) == 2
    assert "row 2 (line 4): answer: the tokenizer does not know 'Zebulon' (in ' Zebulon')" in capsys.readouterr().err
