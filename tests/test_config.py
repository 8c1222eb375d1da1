from typing import get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

import igap
from igap import pipeline
from igap.analyses.registry import ANALYSES
from igap.cli.compose import compose_one
from igap.config import TEXTS, RunConfig, example, field_at, keys, parse
from igap.engine.baselines import Baseline, baseline_of
from igap.errors import InputError
from igap.models import cached
from igap.vocabulary import BASELINE_SETTINGS


@pytest.fixture(scope="module")
def default() -> RunConfig:
    return compose_one([]).config


def changed(config, key, value):
    values = config.model_dump()
    *groups, name = key.split(".")
    place = values
    for group in groups:
        place = place[group]
    place[name] = value
    return parse(values)


def key_of(config):
    """The key of a config that holds its one pair."""
    return config.key_of([[getattr(config.prompts, name) for name in TEXTS]], {})


def test_the_default_run_is_the_notebooks_pair_on_the_embedded_model_offline(default):
    assert default.model.name == "ioi-mini"
    assert default.prompts.clean == "After John and Mary went to the store, Mary gave a bottle of milk to"
    assert default.prompts.corrupted == "After John and Mary went to the store, John gave a bottle of milk to"
    assert (default.prompts.answer, default.prompts.distractor) == (" John", " Mary")
    assert (default.baseline.kind, default.ig.n_steps, default.ig.path) == ("corrupted", 50, "joint")
    assert default.tracking.mode == "offline"
    assert (default.prompts.n, default.prompts.file) == (None, None)
    assert key_of(default) == "5810b932691b", "a finished run's key stays what it was"


def test_the_yaml_files_give_every_key_of_the_schema(default):
    """A key that only the schema knows would be missing from --help and from --cfg."""
    from igap.cli.settings import config_keys

    of_analyses = "analyses."  # their schemas are their own
    named = {key.name for key in config_keys("config") if not key.name.startswith(of_analyses)}
    assert named == set(keys(RunConfig))


def test_the_schemas_choices_are_those_of_the_methods():
    for key, method, argument in [
        ("ig.path", igap.integrated_gradients, "path"),
        ("ig.method", igap.integrated_gradients, "method"),
        ("direction", igap.integrated_gradients, "direction"),
        ("baseline.kind", igap.Baseline, "kind"),
        ("prompts.align", igap.PromptPair, "align"),
        ("model.dtype", igap.load_model, "dtype"),
        ("model.processing", igap.load_model, "processing"),
    ]:
        choices = get_args(get_type_hints(method)[argument])
        assert set(get_args(field_at(tuple(key.split(".")), RunConfig).annotation)) == set(choices), key


def test_a_config_survives_the_round_trip_through_plain_values(default):
    assert parse(default.model_dump()) == default


def test_examples_are_accepted_by_the_schema(default):
    for key in keys(RunConfig):
        name, _, text = example(tuple(key.split(".")), RunConfig).partition("=")
        assert name == key
        if text not in ("None", "VALUE") and field_at(tuple(key.split(".")), RunConfig).annotation in (
            int,
            int | None,
            str,
        ):
            value = int(text) if text.isdigit() else text.strip("'")
            changed(changed(default, "prompts.file", "a.csv") if key == "prompts.limit" else default, key, value)


HOSTILE = [
    None, True, False, 0, -1, 1, 1.5, -0.0, 1e308, -1e308, 1e-320, float("nan"), float("inf"), 2**31, 2**63, 10**400,
    "", " ", "x" * 5000, "\0", "\ud800", "\t", "é木🙂", "1", "null", "0.0 0.0", "0.1 00.1", "\u0660.\u0660",
    "9" * 5000 + ".0", "99.0", "L0.N999999999", "../..", [], {}, [1], ["a"], [None, 1, 2],
    [0, 1, 10**400], [-1e308, 0, 1e308],
    [0, 0, 1], [[0], 1, 2], list(range(20_000)), ("mean", 1), b"x",
]  # fmt: skip


@pytest.mark.parametrize(
    ("group", "more"),
    [
        *((group, {}) for group in sorted({key.partition(".")[0] for key in keys(RunConfig)})),
        ("ablation", {"ablation.kind": "mean", "ablation.n": 20, "ablation.reference_n": 5}),
        ("baseline", {"baseline.kind": "mean"}),
    ],
)
def test_whatever_a_key_is_set_to_it_is_taken_or_refused_in_readable_lines_before_the_weights_load(
    default, monkeypatch, group, more
):
    monkeypatch.setattr(cached, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    start = default.model_copy(update={"device": "cpu"})
    for key, value in more.items():
        start = changed(start, key, value)
    for key in (key for key in keys(RunConfig) if key.partition(".")[0] == group):
        for value in HOSTILE:
            try:
                config = changed(start, key, value)
                pipeline.check(config)
            except InputError as error:
                text = str(error)
                assert max(map(len, text.split("\n"))) < 1300, (key, value)
                assert "\n" not in text.partition("\n  clean: ")[0].strip(), (key, value, text)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "ig.n_steps",
            0,
            r"ig\.n_steps: got 0, wanted a whole number from 1 to 1000000, or auto\. Try ig\.n_steps=50\.",
        ),
        (
            "ablation.components",
            "0.0 0.0",
            r"ablation\.components: got '0\.0 0\.0', wanted outliers, top, or names such",
        ),
        (
            "ablation.components",
            "0.1 00.1",
            r"ablation\.components: got '0\.1 00\.1', wanted outliers, top, or names such as",
        ),
        (
            "curves.components",
            "\u0660.\u0660",
            r"curves\.components: got .{5}, wanted default, none, or names such as '9\.6",
        ),
        (
            "curves.alphas",
            [-1e308, 0, 1e308],
            r"curves\.alphas: got \[-1e\+308, 0, 1e\+308\], wanted 3 to 10000 numbers",
        ),
        (
            "interactions",
            "9" * 5000 + ".0",
            r"interactions: got '9{149}\.\.\.9{27}\.0', wanted a head such as 9\.6 or another .* or null\. Try",
        ),
        ("seed", 2**63, r"seed: got 9223372036854775808, wanted at most 9223372036854775807\. Try seed=0\."),
        ("device", "cuda:\u0663", r"device: got 'cuda:.', wanted auto, cpu, cuda, cuda:N or mps"),
        (
            "ablation.file",
            "a\0.csv",
            r"ablation\.file: got 'a\\x00\.csv', wanted a path of at most 2000 bytes, 255 a name",
        ),
        ("output", "x" * 256, r"output: got 'x{149}\.\.\.x{29}', wanted a path of at most"),
        ("ig.n_steps", "50", r"ig\.n_steps: got '50', wanted a whole number"),
        ("ig.n_steps", True, r"ig\.n_steps: got True, wanted a whole number"),
        ("ig.tolerance", 0.0, r"ig\.tolerance: got 0\.0, wanted more than 0\. Try ig\.tolerance=0\.001\."),
        ("memory_gib", 0.0, r"memory_gib: got 0\.0, wanted more than 0\. Try memory_gib=2\."),
        ("ig.n_step", 5, r"ig\.n_step: got a key that no run has, wanted one of .*ig\.n_steps"),
        ("prompts.min_gap", -1.0, r"prompts\.min_gap: got -1\.0, wanted at least 0"),
        ("prompts.min_gap", float("nan"), r"prompts\.min_gap: got nan, wanted a finite number"),
        ("baseline.n", 10**6, r"baseline\.n: got 1000000, wanted at most 100000\. Try baseline\.n=100"),
        ("device", "gpu", r"device: got 'gpu', wanted auto, cpu, cuda, cuda:N or mps\. Try device=auto"),
        ("tracking.mode", "on", r"tracking\.mode: got 'on', wanted one of 'offline', 'online', 'auto' or 'disabled'"),
        ("sites", "head", r"sites: got 'head', wanted one of 'both', 'heads', .*'mlp_out'\. Did you mean heads\?$"),
        ("sites", "mlp", r"sites: got 'mlp', wanted one of 'both', 'heads', .*\. Did you mean mlp_out\?$"),
        ("ablation.also", ["maen"], r"ablation\.also: got 'maen', wanted one of .*'resample'\. Did you mean mean\?$"),
        ("prompts.n", 1, r"prompts\.n: got 1, wanted at least 2\. Try prompts\.n=100\."),
        ("prompts.n", 2.5, r"prompts\.n: got 2\.5, wanted a whole number"),
        ("prompts.n", 10**6, r"prompts\.n: got 1000000, wanted at most 100000"),
        (
            "prompts.file",
            "",
            r"prompts\.file: got '', wanted a text that is not empty\. Try prompts\.file=pairs\.csv\.",
        ),
        ("prompts.clean", None, r"prompts\.clean: got nothing, wanted a text\. Try prompts\.clean='When"),
        *(
            (
                "curves.alphas",
                alphas,
                r"curves\.alphas: got .*, wanted 3 to 10000 numbers from -1000000 to 1000000, each above the last\. "
                r"Try curves\.alphas=\[-1,0,0\.5,1,2\]\.",
            )
            for alphas in (
                [0, 1],
                [0, "half", 1],
                [1, 0, 2],
                [0, 0, 1],
                [0, True, 2],
                [0, 1, float("inf")],
                0.5,
                "0,1,2",
            )
        ),
        *(
            (
                "curves.components",
                names,
                r"curves\.components: got .*, wanted default, none, or names such as '9\.6 "
                r"L5\.N1234', each once\. Try curves\.components=default\.",
            )
            for names in ("9.6,9.9", "9.6 9.6", "all", " ")
        ),
        (
            "interactions",
            "L5.N3",
            r"interactions: got L5\.N3 with explain=true .* neurons interact, .* Set explain=neurons",
        ),
        (
            "interactions",
            "9",
            r"interactions: got '9', wanted a head such as 9\.6 or another .* or null\. Try interactions='9\.6'",
        ),
        *(
            ("explain", sites, r"explain: got .*, wanted true, false, all, or sites of the run, .*, each once\.")
            for sites in ("", "heads heads", ["heads", 5])
        ),
        *(
            ("faithfulness", sites, r"faithfulness: got .*, wanted one of 'none', 'both', .*, each once\.")
            for sites in ("", "heads heads")
        ),
        *(
            ("positions.spans", {name: 3}, r"positions\.spans: got .*, wanted spans by name, each a position")
            for name in ("", " S2", "a\n", "x" * 101, 5)
        ),
        ("batch_size", 0, r"batch_size: got 0, wanted at least 1\. Try batch_size=64"),
        ("metric.function", "a b:c", r"metric\.function: got 'a b:c', wanted a function as package\.module:name\."),
        ("tracking.project", "x" * 129, r"tracking\.project: got .*, wanted at most 128 characters"),
        ("tracking.group", "x" * 129, r"tracking\.group: got .*, wanted at most 128 characters"),
        ("plots", "x" * 10_001, r"plots: got .*, wanted at most 10000 characters"),
        ("model.revision", "x" * 256, r"model\.revision: got .*, wanted at most 255 characters"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(default, key, value, message):
    with pytest.raises(ValueError, match=message) as refused:
        changed(default, key, value)
    assert "\n" not in str(refused.value)


def test_every_mistake_gets_its_line(default):
    values = default.model_dump()
    values["ig"]["n_steps"], values["seed"] = 0, "one"
    with pytest.raises(ValueError, match=r"ig\.n_steps: got 0.*\nseed: got 'one'"):
        parse(values)


@pytest.mark.parametrize(
    "key", ["tracking.project", "output", "sweep", "device", "batch_size", "model.name", "ablation.file"]
)
def test_what_does_not_determine_the_numbers_does_not_change_the_key(default, key):
    value = {"device": "cpu", "batch_size": 3}.get(key, "other")
    assert key_of(changed(default, key, value)) == key_of(default)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("ig.n_steps", st.integers(1, 10**6)),
        ("prompts.clean", st.text(min_size=1)),
        ("prompts.min_gap", st.floats(0, 1e6)),
        ("model.circuit", st.sampled_from([None, "ioi"])),
        ("direction", st.sampled_from(["noising", "denoising"])),
    ],
)
@given(data=st.data())
def test_what_determines_the_numbers_changes_the_key(default, key, values, data):
    value = data.draw(values)
    other = changed(default, key, value)
    assert (key_of(other) == key_of(default)) == (other == default)
    assert len(key_of(other)) == 12


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ("ablation=zero", "8bf1382b86e8"),
        ("ablation=zero ablation.components=top ablation.top=3 ablation.by=ig", "d44a1f7044d2"),
        ("ablation=mean ablation.reference_n=50", "b3148ab9ee16"),
        ("ablation=zero ablation.also=[mean] ablation.reference_n=50", "605bbcf47645"),
        ("ig.n_steps=auto ig.tolerance=1e-4", "7ae247ab295a"),
        ("curves.alphas=[0,0.5,1]", "5a7275f60916"),
        ("curves.components=none", "6406b0e692cf"),
        ("sites=neurons", "4aca4a118be4"),
        ("sites=neurons curves.components=none", "209f4fa8a555"),
        ("baseline=mean baseline.n=5", "9b074f9a9ea5"),
        ("faithfulness=heads baseline.n=5", "9dc919e4739b"),
    ],
)
def test_a_finished_runs_key_stays_what_it_was_where_all_settings_are_used(overrides, key):
    config = compose_one(overrides.split()).config
    assert key_of(config) == key
    assert not config.idle


IDLE = [
    ("", "ablation.n=5", "no ablation was asked for (ablation=zero|mean|mean_positional|resample)"),
    ("", "ablation.also=[mean]", "no ablation was asked for"),
    ("ablation=zero", "ablation.top=3", "only ablation.components=top takes"),
    ("ablation=zero", "ablation.by=ig", "only ablation.components=top takes"),
    ("ablation=zero ablation.also=[resample]", "ablation.reference_n=50", "only ablation=mean|mean_positional"),
    ("curves.components=none", "curves.alphas=[0,0.5,1]", "no curves were asked for"),
    ("sites=neurons", "curves.alphas=[0,0.5,1]", "no curves were asked for"),
    ("", "ig.tolerance=0.01", "ig.n_steps=50 is fixed, only ig.n_steps=auto has a tolerance"),
    ("", "baseline.n=5", "no mean over reference prompts was asked for (baseline=mean)"),
]


@pytest.mark.parametrize(("asked", "setting", "reason"), IDLE)
def test_a_setting_of_what_was_not_asked_for_is_not_in_the_key(asked, setting, reason):
    without, having = (compose_one([*asked.split(), *more]).config for more in ([], [setting]))
    assert key_of(having) == key_of(without)
    (idle,) = having.idle
    assert list(idle.values) == [setting.partition("=")[0]]
    assert idle.reason.startswith(reason)


@pytest.mark.parametrize(
    "overrides", ["", "ablation=zero", "sites=neurons", "curves.components=none", "curves.components='0.1'"]
)
def test_the_settings_of_an_analysis_that_is_off_change_nothing_and_those_of_one_that_is_on_do(overrides):
    settings = ["ablation.n=50", "ablation.generate=true", "curves.alphas=[0,0.5,1]"]
    config = compose_one([*overrides.split(), *settings]).config
    idle = {key.partition(".")[0] for each in config.idle for key in each.values}
    assert idle == {name for name in ("ablation", "curves") if not ANALYSES[name].is_requested(config)}


def test_of_the_baseline_the_key_holds_what_its_kind_uses(default):
    def key(kind, **baseline):
        return key_of(parse({**default.model_dump(), "baseline": {"kind": kind, **baseline}}))

    assert key("zero", n=3, seed=5) == key("zero")
    assert key("mean", n=3) != key("mean") != key("zero")
    assert key("mean", seed=5) != key("mean")
    assert key("prompt", prompt="a") != key("prompt", prompt="b")


def test_a_setting_that_one_more_kind_uses_reaches_its_key_and_its_baseline(default, monkeypatch):
    monkeypatch.setitem(BASELINE_SETTINGS, "zero", ("n",))
    few, many = (parse({**default.model_dump(), "baseline": {"kind": "zero", "n": n, "seed": 9}}) for n in (3, 5))
    assert key_of(few) != key_of(many)
    assert [baseline_of(each.baseline) for each in (few, many)] == [Baseline("zero", n=3), Baseline("zero", n=5)]
    assert not few.idle


def test_a_config_cannot_be_changed(default):
    with pytest.raises(ValueError, match="frozen"):
        default.seed = 1


def test_pairs_come_from_one_place(default):
    values = default.model_dump()
    values["prompts"] |= {"n": 5, "file": "pairs.csv"}
    with pytest.raises(ValueError, match=r"prompts\.file: got 'pairs\.csv' together with prompts\.n=5, wanted one of"):
        parse(values)


@pytest.mark.parametrize("overrides", [["prompts.n=5"], ["prompts=generated"], ["prompts.file=pairs.csv"]])
def test_with_several_pairs_the_config_holds_no_single_pairs_texts(overrides):
    config = compose_one(overrides).config
    assert [getattr(config.prompts, name) for name in TEXTS] == [None] * 4
    assert parse(config.model_dump()) == config


def test_the_seed_of_the_prompts_is_the_runs_unless_it_is_given():
    seeds = [
        compose_one([*overrides, "prompts=generated"]).config.prompts.seed
        for overrides in ([], ["seed=3"], ["seed=3", "prompts.seed=0"])
    ]
    assert seeds == [0, 3, 0]


def test_of_several_pairs_the_key_holds_every_text_their_order_and_the_seed():
    config = compose_one(["prompts.n=2"]).config
    pairs = [["a b", "a c", "b", "c"], ["d e", "d f", "e", "f"]]
    others = [pairs[::-1], [*pairs, pairs[0]]]
    for row in range(2):
        for column in range(4):
            changed_pairs = [list(texts) for texts in pairs]
            changed_pairs[row][column] += "x"
            others.append(changed_pairs)
    keys = {config.key_of(other, {}) for other in others} | {
        config.key_of(pairs, {}),
        changed(config, "prompts.seed", 1).key_of(pairs, {}),
    }
    keys.add(changed(config, "prompts.min_gap", 0.5).key_of(pairs, {}))
    assert len(keys) == len(others) + 3
    from_file = compose_one(["prompts.file=pairs.csv"]).config
    assert from_file.key_of(pairs, {}) == config.key_of(pairs, {}), "n and file are where the pairs come from"


def test_a_heads_name_that_reads_as_a_number_stays_a_name():
    """Unquoted, 9.10 would be read as the number 9.1, which is another head."""
    from igap.cli.texts import quote_override

    for key in ("interactions", "curves.components"):
        config = compose_one([quote_override(f"{key}=9.10")]).config
        assert (config.interactions or config.curves.components) == "9.10"
        with pytest.raises(ValueError, match=rf"^{key}: got 9\.1, wanted a text\. Try {key}="):
            compose_one([f"{key}=9.10"])


def test_interactions_need_an_explanation_on_the_joint_path(default):
    values = {**default.model_dump(), "interactions": "1.2"}
    assert parse(values).interactions == "1.2"
    with pytest.raises(ValueError, match=r"^interactions: got 1\.2 with explain=false and ig\.path=joint, wanted the"):
        parse({**values, "explain": False})
    with pytest.raises(ValueError, match=r"Set explain=true ig\.path=joint, or interactions=null\.$"):
        parse({**values, "ig": {**values["ig"], "path": "single"}})


def test_alphas_are_numbers_in_order_or_none(default):
    assert changed(default, "curves.alphas", [-1, 0.5, 2]).curves.alphas == (-1.0, 0.5, 2.0)
    assert changed(default, "curves.alphas", None).curves.alphas is None


@pytest.mark.parametrize(
    ("name", "short"), [("gpt2", "gpt2"), ("HuggingFaceTB/SmolLM2-135M", "SmolLM2-135M"), ("/a/b/tiny/", "tiny")]
)
def test_a_models_short_name_is_the_last_part(default, name, short):
    assert changed(default, "model.name", name).model.short_name == short


def test_a_study_of_zero_and_mean_ablation_needs_the_notebooks_criterion():
    with pytest.raises(InputError, match=r"^ablation\.generate: got false with study=notebook, wanted true"):
        compose_one(["experiment=notebook", "ablation.generate=false"])
    compose_one(["experiment=notebook", "ablation.generate=false", "ablation.also=[]"])


def test_a_list_with_many_bad_entries_is_one_line_and_minus_zero_is_zero(default):
    with pytest.raises(InputError) as refused:
        changed(default, "ablation.also", [0, 1, 2])
    assert str(refused.value).startswith("ablation.also: got 0, wanted one of 'zero', ")
    assert "\n" not in str(refused.value)
    minus = changed(changed(default, "prompts.min_gap", -0.0), "curves.alphas", [-0.0, 0.5, 1])
    assert key_of(minus) == key_of(changed(changed(default, "prompts.min_gap", 0.0), "curves.alphas", [0, 0.5, 1]))
