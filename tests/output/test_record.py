"""What a run leaves for its pictures: the same pictures, from a file that anybody may have written."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from igap import pipeline
from igap.analyses.circuit.recovery import recover
from igap.analyses.registry import ANALYSES
from igap.attribution.maps import AttributionMap
from igap.cli.compose import compose_one
from igap.models import cached
from igap.output import figures, record
from igap.output.figures import figure_data, has_figures
from igap.storage import tensors_file, typed_file


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory):
    """A run in which every analysis has found something."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.csv"
    rest = "Mary went to the store, Mary gave a bottle of milk to"
    rows = "".join(f'"After {name} and {rest}",{name},Mary\n' for name in ("John", "Tom", "Anna"))
    prompts.write_text(f"prompt,answer,distractor\n{rows}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cached, "_cached_model", cached._cached_model.__wrapped__)
        more = ["ablation=zero", "ablation.components=top", "ablation.top=2", "ablation.controls=1"]
        more += [f"ablation.file={prompts}", "ablation.reference_n=2"]
        overrides = ["model=hf", f"model.name={checkpoint('gpt2')}", "prompts.min_gap=0", "device=cpu", *more]
        run = pipeline.run(
            compose_one(
                [*overrides, "faithfulness=heads", "analyses=[both_directions,self_repair,direct_effect,edges,sets]"]
            ).config
        )
    generator = torch.Generator().manual_seed(0)
    maps = [AttributionMap(name, "heads", torch.randn(12, 12, generator=generator), 1.0) for name in ("ig", "ap")]
    return dataclasses.replace(run, findings={**run.findings, "circuit": recover(maps)})


def pictures(folder):
    return {path.name: path.read_bytes() for path in (folder / "plots").glob("*.png")}


def test_pictures_of_analyses_from_the_record_are_those_of_the_result_in_memory(whole, tmp_path):
    memory, disk = tmp_path / "memory", tmp_path / "disk"
    for folder in (memory, disk):
        (folder / "plots").mkdir(parents=True)
    data, failures = figure_data(whole), {}
    names = frozenset(data.findings)
    assert names == {analysis for analysis in ANALYSES if has_figures(analysis)}
    assert not figures.draw(data, memory, names).failures
    record.write(record.Record({}, data), disk, failures)
    assert not record.draw(disk, names).failures
    assert not failures
    assert pictures(disk) == pictures(memory) != {}


def test_pictures_of_several_pairs_from_the_record_are_those_that_the_run_drew(many, many_written, tmp_path):
    (tmp_path / "plots").mkdir()
    failures = {}
    record.write(record.Record({}, figure_data(many)), tmp_path, failures)
    assert not record.draw(tmp_path, figures.parse_names("all")).failures
    assert not failures
    assert pictures(tmp_path) == pictures(many_written) != {}


def test_a_summary_comes_back_as_it_was_whole_numbers_and_texts_too(result, tmp_path):
    summary = {"n": 5, "share": 1.0, "note": "nan", "none": None}
    record.write(record.Record(summary, figure_data(result)), tmp_path, {})
    again = dict(record.read(tmp_path).summary)
    assert (again, [type(value) for value in again.values()]) == (summary, [int, float, str, type(None)])


def test_a_finding_that_no_file_can_hold_costs_its_own_pictures_only(result, tmp_path):
    data = figure_data(result)
    odd = dataclasses.replace(data, findings={**data.findings, "curves": SimpleNamespace()})
    failures = {}
    kept = record.write(record.Record({}, odd), tmp_path, failures)
    assert failures.keys() == {"plots/curves"}
    assert "a SimpleNamespace cannot be saved; wanted a dataclass" in failures["plots/curves"].reason
    assert "explain" in kept.data.findings
    assert record.read(tmp_path).data.findings.keys() == kept.data.findings.keys()


def changed(tree, where, value):
    """The tree with another value at a path of keys."""
    for key in where[:-1]:
        tree = tree[key]
    tree[where[-1]] = value


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        (["schema"], 99, "its schema is 99, this igap knows 1"),
        (["title"], 5, "title holds int, wanted str"),
        (["several_pairs"], "yes", "several_pairs holds str, wanted bool"),
        (["sites", "heads"], [], "holds list, wanted unit, ig, ap"),
        (["sites", "tails"], {}, "a key of sites holds str"),
        (["sites", "heads", "ig"], {"array": "no"}, r"sites\[heads\].ig holds dict, wanted an array"),
        (["sites", "heads", "comparison", "n"], 1.5, r"comparison.n holds float, wanted int"),
        (["sites", "heads", "delta"], None, r"sites\[heads\].delta holds NoneType, wanted an array"),
        (["findings"], {"os.system": {}}, "findings of no analysis that draws"),
        (["findings", "explain", "outliers"], [1], r"explain.outliers\[0\] holds int, wanted str"),
        (["summary"], {"gap": []}, r"summary\[gap\] holds list"),
    ],
)  # fmt: skip
def test_a_record_that_holds_something_else_is_refused_with_its_place(result, tmp_path, where, value, said):
    record.write(record.Record({}, figure_data(result)), tmp_path, {})
    text, tensors = tensors_file.read(tmp_path / record.FILE)
    tree = json.loads(text)
    changed(tree, where, value)
    (tmp_path / record.FILE).write_bytes(tensors_file.to_bytes(json.dumps(tree), tensors))
    with pytest.raises(ValueError, match=said):
        record.read(tmp_path)


def test_a_record_from_before_a_field_was_there_is_read_and_lacks_no_other(one):
    tensors = {}
    tree = typed_file.encode(one, tensors)
    del tree["baseline"], tree["direction"]
    read = typed_file.decode(AttributionMap, tree, tensors)
    assert torch.equal(read.effect, one.effect)
    assert (read.baseline, read.direction) == (None, None)
    del tree["signed"]
    with pytest.raises(ValueError, match="wanted method, site"):
        typed_file.decode(AttributionMap, tree, tensors)


@pytest.fixture
def one():
    """A map that knows what it moved to."""
    return AttributionMap("ap", "heads", torch.rand(2, 3), gap=1.0, baseline="zero", direction="noising")


def test_an_array_of_another_shape_or_type_is_refused():
    hint = figures.SiteData.__annotations__["ig"]
    for tensor in (torch.zeros(3).double(), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match=r"it holds torch\.float\d+ of shape"):
            typed_file.decode(hint, {"array": "0"}, {"0": tensor})
    assert np.array_equal(typed_file.decode(hint, {"array": "0"}, {"0": torch.ones(2, 3).double()}), np.ones((2, 3)))


def test_a_record_cut_short_is_no_record(written, tmp_path):
    content = (written / record.FILE).read_bytes()
    for end in (0, 5, len(content) // 2, len(content) - 1):
        (tmp_path / record.FILE).write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"cannot be read|do not agree"):
            record.read(tmp_path)


def test_a_record_is_whole_while_the_files_beside_it_are_as_they_were_written(written, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(written, folder)
    kept, table = record.read(folder), folder / "heads.csv"
    content = table.read_bytes()
    assert {"heads.csv", "attributions.safetensors"} <= kept.digests.keys()
    for change in (lambda: table.write_bytes(content + b"1"), table.unlink, lambda: (folder / "x.csv").write_text("")):
        assert kept.is_whole(folder)
        change()
        assert not kept.is_whole(folder)
        table.write_bytes(content)
