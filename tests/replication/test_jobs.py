"""The runs of a study: what fails in one of them costs no other."""

import dataclasses
import json

from igap import pipeline
from igap.cli.compose import compose_one
from igap.errors.failures import Failure
from igap.output import disk, figures
from igap.replication import jobs


def test_the_other_runs_of_a_study_have_no_settings_that_change_nothing():
    config = compose_one(["experiment=notebook"]).config
    assert not config.idle
    assert not any(other.idle for other in jobs.configs(config).values())


def test_a_run_of_a_study_that_fails_costs_itself_and_the_comparison_only(result, tmp_path, monkeypatch):
    lame = dataclasses.replace(result, failures={"curves": Failure("a flat tyre", "the story")})

    def run(config, stage, store):
        if config.prompts.align == "diff":
            raise MemoryError
        return lame if config.baseline.kind == "zero_input" else result

    monkeypatch.setattr(pipeline, "run", run)
    found = jobs.run(result.config)
    assert found.beside.keys() == {"zero-baseline"}
    assert found.findings.keys() == result.findings.keys()
    assert {name: failure.reason for name, failure in found.failures.items()} == {"second-pair": "MemoryError"}
    monkeypatch.setattr(figures, "figures", lambda _: {})
    disk.prepare(tmp_path)
    summary = disk.write(found, tmp_path)
    assert summary["failed"] == "second-pair zero-baseline/curves"
    assert summary["zero-baseline/curves/reason"] == "a flat tyre"
    assert json.loads((tmp_path / "zero-baseline" / "summary.json").read_text())["failed"] == "curves"
