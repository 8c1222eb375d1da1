"""The atlas: planted heads come back with the words that they were planted for; files, page, W&B, what is refused."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from igap import PromptPair, search
from igap.bench.blueprint import Blueprint
from igap.cli import main
from igap.cli.compose import compose_searches
from igap.counterfactual.atlas.atlas import make_atlas
from igap.counterfactual.config import SpaceConfig
from igap.output.tracking.places import find_logged_run
from igap.storage.finished import find_runs

PAIR = PromptPair("After John gave a milk to", "After John gave a dog to", " John", " Mary", min_gap=0.0)
SLOTS = {"who": ["John", "Mary", "Tom"], "thing": ["milk", "cat", "dog"]}


def planted_model():
    """Head 0.0 moves most where Mary acts, 0.1 with a cat, 0.2 where Tom does; 0.3 does nothing."""
    model = Blueprint(1, 4, 2)
    model.word("John", person=2.0, stranger=1.0)
    model.word("Mary", person=-2.0, stranger=1.0)
    model.word("Tom", person=1.9, stranger=-2.0)
    model.word("milk", thing=1.0)
    model.word("cat", thing=-0.5)
    model.word("dog", thing=0.9)
    for head, feature, position in ((0, "person", 2), (1, "thing", 5), (2, "stranger", 2)):
        model.head(f"0.{head}", ({feature: 1.0}, {"out": 1.0}), matches=model.look_at(position))
    model.logit("John", out=1.0)
    return model.load()


@pytest.fixture(scope="module")
def searched():
    loaded = planted_model()
    space = SpaceConfig(kind="slots", template="After {who} gave a {thing} to", slots=SLOTS)
    asked = {"space": space, "until": 9, "control": 0, "clean_n": 1, "heldout_n": 0, "sampler": "brute"}
    return [(head, search(loaded, PAIR, head, **asked)) for head in ("0.0", "0.1", "0.2", "0.3")]


@pytest.fixture(scope="module")
def planted(searched):
    return make_atlas(searched)


def test_planted_heads_are_shown_by_the_words_they_were_planted_for(planted):
    heads = planted.head_frame().set_index("name")
    assert heads["effect_best"].tolist() == pytest.approx([-4.0, -1.5, -3.0, 0.0], abs=1e-6)
    rules = planted.prompt_frame().set_index("prompt")["rule"]
    for head, words in (("0.0", "who := Mary"), ("0.1", "thing := cat"), ("0.2", "who := Tom")):
        assert words in rules[heads["prompt"][head]]
    assert heads["effect_by_hand"].tolist() == pytest.approx([0, -0.1, 0, 0], abs=1e-6)


def test_every_prompt_found_is_in_one_cluster(planted):
    clusters = planted.cluster_frame()
    assert sorted(" ".join(clusters["prompts"]).split()) == ["0.0", "0.1", "0.2", "0.3"]
    shown = {name: set(row["shows"].split()) for _, row in clusters.iterrows() for name in row["prompts"].split()}
    assert "0.0" in shown["0.0"]
    assert "0.2" in shown["0.2"]
    assert shown["0.0"] != shown["0.2"]
    chosen = planted.head_frame().set_index("name")["prompt_chosen"]
    assert chosen[["0.0", "0.1", "0.2"]].tolist() == ["0.0", "0.1", "0.2"]


def test_clean_prompts_that_a_candidate_does_not_change_count_with_0(searched, planted):
    half = make_atlas([(name, replace(result, clean=result.clean * 2)) for name, result in searched])
    np.testing.assert_allclose(half.effects[:, 1:], planted.effects[:, 1:] / 2)
    np.testing.assert_allclose(half.effects[:, 0], planted.effects[:, 0])


def test_the_fewest_prompts_show_them_together(planted):
    """Mary and Tom cannot act in one prompt, and no search for one of them had a reason to take the cat."""
    few = planted.prompt_frame().dropna(subset="chosen").sort_values("chosen")
    assert len(few) == planted.summary()["atlas/n_chosen"] == planted.summary()["atlas/n_least"] == 3
    words = " ".join(few["rule"])
    assert all(word in words for word in ("who := Mary", "who := Tom", "thing := cat"))
    assert planted.summary()["atlas/share"] >= 0.95
    assert planted.summary()["atlas/share_by_hand"] == pytest.approx(0.1 / 8.5, abs=1e-6)
    assert planted.summary()["atlas/transfer"] is None
    assert planted.summary()["atlas/transfer/reason"] == "heldout.n=0"
    assert "(no fewer of these do)" in planted.sentences()[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("searches")
    brief = ["search.until=8", "search.control=2", "clean.n=2", "heldout.n=3", "full_run=false"]
    assert main(["search", "atlas", "head=0.3,1.2", *brief, "search/space=words", f"output={out}"]) == 0
    return out / "atlas"


def read(path):
    """A matrix of heads, whose names are no numbers."""
    return pd.read_csv(path, index_col="head", dtype={"head": str})


def test_the_files_say_the_same(folder):
    atlas = folder / "atlas"
    matrix, heldout = (
        pd.read_csv(atlas / f"{name}.csv", index_col="head", dtype={"head": str}) for name in ("matrix", "heldout")
    )
    assert list(matrix) == ["by hand", "0.3", "1.2"]
    scan = read(folder / "matrix.csv")
    pd.testing.assert_frame_equal(matrix.loc[scan.index, list(scan)], scan)
    own = pd.read_csv(folder / "0.3-ap" / "heads.csv", index_col="name", dtype={"name": str})
    np.testing.assert_allclose(heldout["0.3"], own["heldout/effect"])
    np.testing.assert_allclose(matrix["by hand"], own["by_hand/effect"])
    heldout_of_search = json.loads((folder / "0.3-ap" / "search_summary.json").read_text())["heldout/mean"]
    assert abs(heldout["0.3"]["0.3"]) == pytest.approx(abs(heldout_of_search), abs=1e-5)
    summary = json.loads((atlas / "atlas_summary.json").read_text())
    few = pd.read_csv(atlas / "prompts.csv").dropna(subset="chosen").sort_values("chosen")["prompt"]
    shown = matrix.abs()[[*few]].max(axis=1).sum() / matrix.abs().max(axis=1).sum()
    assert summary["atlas/share"] == pytest.approx(shown)
    searched = [name for name in few if name != "by hand"]
    where = matrix[searched].abs().idxmax(axis=1)
    pairs = [
        (heldout[name][head] * np.sign(matrix[name][head]), abs(matrix[name][head])) for head, name in where.items()
    ]
    assert summary["atlas/transfer"] == pytest.approx(np.sum(pairs, 0)[0] / np.sum(pairs, 0)[1])


def test_the_page_holds_everything_itself(folder):
    page = (folder / "atlas" / "atlas.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    prompts = pd.read_csv(folder / "atlas" / "prompts.csv")
    for text in [*prompts["corrupted"], *prompts["rule"].dropna()]:
        assert f"<td>{text}</td>" in page
    assert "data:image/png;base64," in page


def test_it_is_a_run_in_wandb(folder):
    atlas = folder / "atlas"
    for name in ("prompts", "matrix", "clusters"):
        table = json.loads(next((atlas / "wandb").rglob(f"tables/{name}_*.table.json")).read_text())
        assert len(table["data"]) == len(pd.read_csv(atlas / f"{name}.csv"))
    assert next((atlas / "wandb").rglob("plots/atlas_*.png"))
    assert find_logged_run(atlas)
    known, problems = find_runs([folder], searches=True)
    assert atlas in [each.folder for each in known]
    assert not problems


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("'9.6'", r"atlas: got true with head=9\.6, wanted effects of several heads\. Use head=all"),
        ("all objective=error", "atlas: got true with objective=error, wanted effects of several heads"),
        ("'0.3,1.2@END'", "atlas: got true with head=.*, wanted one span for all"),
        ("'0.3,L1.N2'", r"atlas: got true with head=L1\.N2, wanted heads alone.*Leave L1\.N2 out"),
        ("'0.3+1.2,0.4'", r"atlas: got true with head=0\.3\+1\.2, wanted heads alone"),
        (
            "all atlas=shared aggregate=min constraints.min_fluency=-1",
            r"got shared with aggregate=min, constraints.min_fluency=-1, wanted the default: .*Leave them out, or ",
        ),
        *(
            (
                f"all atlas=shared {setting}",
                f"atlas: got shared with {setting}, wanted the default: .*Leave it out, or ",
            )
            for setting in (
                "objective=selectivity",
                "sign=drop",
                "search.workers=2",
                "search.worker=2",
                "search.sampler=brute",
                "optimality=100000",
                "clean.lengths=any",
            )
        ),
        ("all atlas=yes", "atlas: got 'yes', wanted true, false or shared"),
    ],
)
def test_what_makes_no_atlas_is_refused(head, message):
    with pytest.raises(ValueError, match=message):
        compose_searches(["atlas=true", *f"head={head}".split(" ")])
