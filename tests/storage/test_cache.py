"""What jobs share is what they would compute, found by all it depends on, and never believed by its name."""

import logging
import multiprocessing
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from igap import Baseline, integrated_gradients
from igap.storage import cache, tensors_file
from igap.storage.cache import ResultCache, get_or_compute, use_cache

TENSORS = {"effect": torch.arange(6.0).view(2, 3), "signed": torch.tensor(True), "gap": torch.tensor([1 / 3]).double()}


class Counted:
    """Computes TENSORS and counts how often."""

    def __init__(self):
        self.n = 0

    def __call__(self):
        self.n += 1
        return TENSORS


def same(found):
    return found.keys() == TENSORS.keys() and all(
        torch.equal(found[name], TENSORS[name]) and found[name].dtype == TENSORS[name].dtype for name in TENSORS
    )


def only_file(folder):
    (path,) = folder.glob("*.safetensors")
    return path


def test_without_a_store_everything_is_computed():
    compute = Counted()
    get_or_compute("ap", {}, compute)
    with use_cache(None):
        get_or_compute("ap", {}, compute)
    assert compute.n == 2


def test_a_result_is_computed_once_and_comes_back_bit_for_bit(tmp_path):
    compute = Counted()
    for _ in range(3):
        with use_cache(ResultCache(tmp_path, {"checkpoint": "x"})):
            assert same(get_or_compute("ap", {"site": "heads"}, compute))
    assert compute.n == 1


@pytest.mark.parametrize(
    ("common", "kind", "inputs"),
    [({"checkpoint": "y"}, "ap", {"site": "heads"}), ({"checkpoint": "x"}, "atp", {"site": "heads"}),
     ({"checkpoint": "x"}, "ap", {"site": "neurons"}), ({"checkpoint": "x"}, "ap", {"site": "heads", "n": 1})],
)  # fmt: skip
def test_other_inputs_are_another_result(tmp_path, common, kind, inputs):
    compute = Counted()
    ResultCache(tmp_path, {"checkpoint": "x"}).get_or_compute("ap", {"site": "heads"}, compute)
    ResultCache(tmp_path, common).get_or_compute(kind, inputs, compute)
    assert compute.n == 2


def change_a_number(path):
    metadata = tensors_file.read(path)
    tensors = load_file(path)
    tensors["effect"] = tensors["effect"] + 1
    save_file(tensors, path, metadata={"asked": metadata[0], "sha256": tensors_file._digest(metadata[0], TENSORS)})


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "a changed bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "a changed number under the old hash": change_a_number,
    "no metadata": lambda path: save_file(TENSORS, path),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_reported_and_computed_again(tmp_path, damage, caplog):
    compute, kept = Counted(), ResultCache(tmp_path, {})
    kept.get_or_compute("ap", {}, compute)
    DAMAGES[damage](only_file(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert same(kept.get_or_compute("ap", {}, compute))
    assert compute.n == 2
    assert caplog.text.count("computing it again") == 1
    caplog.clear()
    assert same(kept.get_or_compute("ap", {}, compute))
    assert compute.n == 2
    assert caplog.text == "", "the file has been replaced by a sound one"


@pytest.mark.parametrize(("kind", "site"), [("ap", "neurons"), ("atp", "heads")])
def test_a_sound_file_under_another_ones_name_is_not_believed(tmp_path, caplog, kind, site):
    compute, kept = Counted(), ResultCache(tmp_path, {})
    kept.get_or_compute("ap", {"site": "heads"}, lambda: {"effect": torch.zeros(1)})
    wrong = only_file(tmp_path)
    kept.get_or_compute(kind, {"site": site}, compute)
    (right,) = set(tmp_path.glob("*.safetensors")) - {wrong}
    shutil.copy(wrong, right)
    assert same(kept.get_or_compute(kind, {"site": site}, compute))
    assert compute.n == 2
    assert "it holds what other inputs gave; computing it again" in caplog.text


def test_what_is_too_large_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "LARGEST", 32)
    compute = Counted()
    assert same(ResultCache(tmp_path, {}).get_or_compute("ap", {}, compute))
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_folder_that_takes_nothing_costs_no_result(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert same(ResultCache(tmp_path / "file" / "store", {}).get_or_compute("ap", {}, Counted()))
    assert "nothing can be shared there" in caplog.text


def test_a_disk_without_room_costs_no_result(tmp_path, caplog, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "write_bytes", full)
    assert same(ResultCache(tmp_path, {}).get_or_compute("ap", {}, Counted()))
    assert "cannot be kept for other jobs (No space left on device)" in caplog.text


def test_an_error_of_the_computation_is_the_callers_and_keeps_nothing(tmp_path):
    def broken():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        ResultCache(tmp_path, {}).get_or_compute("ap", {}, broken)
    assert not list(tmp_path.glob("*.safetensors"))
    assert same(ResultCache(tmp_path, {}).get_or_compute("ap", {}, Counted()))


def compute_slowly(folder, counts):
    def compute():
        (counts / str(multiprocessing.current_process().pid)).write_text("")
        multiprocessing.Event().wait(1)
        return TENSORS

    assert same(ResultCache(folder, {}).get_or_compute("ap", {}, compute))


def test_two_processes_that_need_it_at_once_compute_it_once(tmp_path):
    (tmp_path / "counts").mkdir()
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path / "store", tmp_path / "counts")
    processes = [context.Process(target=compute_slowly, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list((tmp_path / "counts").iterdir())) == 1


def test_runs_and_reference_means_are_shared_and_every_number_stays(ioi_mini, pair, tmp_path, monkeypatch):
    """Of the model itself: with a hook on it, it is another one."""
    forwards = []
    run = type(ioi_mini).run_with_cache
    monkeypatch.setattr(type(ioi_mini), "run_with_cache", lambda *a, **k: forwards.append(1) or run(*a, **k))
    baseline = Baseline("mean", n=3)

    def effect(n_steps):
        found = integrated_gradients(ioi_mini, pair, "heads", baseline=baseline, n_steps=n_steps).effect
        counts.append(len(forwards))
        forwards.clear()
        return found

    counts = []
    alone = effect(3), effect(4)
    with use_cache(ResultCache(tmp_path, {})):
        together = effect(3), effect(4)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    assert counts[:2] == [counts[0]] * 2
    assert counts[2] == counts[0], "clean, corrupted and three reference prompts, as without a store"
    assert counts[3] == 0, "all of them from the store"
    assert {path.name.partition("-")[0] for path in tmp_path.glob("*.safetensors")} == {"run", "mean"}
    assert len(list(tmp_path.glob("run-*.safetensors"))) == 2, "clean and corrupted: the references are in their mean"
    hook = ioi_mini.hook_dict["blocks.0.hook_out"].add_hook(lambda activation, hook: 2 * activation)
    try:
        with use_cache(ResultCache(tmp_path, {})):
            hooked = effect(3)
    finally:
        hook.hook.remove()
        ioi_mini.hook_dict["blocks.0.hook_out"].fwd_hooks.remove(hook)
    assert not torch.equal(hooked, alone[0])
    assert counts[4] == counts[0], "nothing of the other model is taken"


def numbered(place):
    return {"effect": torch.tensor([float(place)])}


def test_what_others_lack_is_computed_beside_the_first_and_nothing_twice(tmp_path):
    kept, asked = ResultCache(tmp_path, {}), []

    def compute(places):
        asked.append(list(places))
        return [None if place == 2 else numbered(place) for place in places]

    inputs = [{"n": n} for n in range(4)]
    kept.get_or_compute("ap", inputs[1], lambda: numbered(1))
    for _ in range(2):
        assert kept.get_or_compute_first("ap", inputs, compute)["effect"] == 0
    assert asked == [[0, 2, 3]], "the second time the first is there"
    assert kept.get_or_compute("ap", inputs[3], lambda: numbered(9))["effect"] == 3
    assert kept.get_or_compute("ap", inputs[2], lambda: numbered(9))["effect"] == 9, "it was not given"


def ask_for_all(folder, counts, first):
    def compute(places):
        (counts / str(multiprocessing.current_process().pid)).write_text("")
        multiprocessing.Event().wait(0.5)
        return [numbered(inputs[place]["n"]) for place in places]

    inputs = [{"n": first}, {"n": 1 - first}]
    assert ResultCache(folder, {}).get_or_compute_first("ap", inputs, compute)["effect"] == first


def test_processes_that_need_different_ones_of_the_same_compute_them_once(tmp_path):
    (tmp_path / "counts").mkdir()
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=ask_for_all, args=(tmp_path / "store", tmp_path / "counts", n % 2)) for n in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(list((tmp_path / "counts").iterdir())) == 1


def test_parts_are_of_the_result_that_is_computed_and_of_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "PART_EVERY", 0.0)
    kept, parts = ResultCache(tmp_path, {"checkpoint": "x"}), []

    def made(n, inputs, *, dies=False):
        def compute():
            for place in range(2):
                parts.append(cache.part({"layer": place}, lambda place=place: numbered(10 * n + place))["effect"])
            if dies:
                raise KeyboardInterrupt
            return numbered(n)

        return kept.get_or_compute("ap", inputs, compute)

    with pytest.raises(KeyboardInterrupt):
        made(1, {"n": 1}, dies=True)
    made(2, {"n": 2})
    made(3, {"n": 1})
    assert [float(part) for part in parts] == [10, 11, 20, 21, 10, 11]
    assert not list(tmp_path.glob("part-*.safetensors"))
    assert float(cache.part({"layer": 0}, lambda: numbered(7))["effect"]) == 7, "of no result"


def test_a_damaged_part_is_computed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "PART_EVERY", 0.0)
    kept = ResultCache(tmp_path, {})

    def compute(*, dies):
        made = cache.part({"layer": 0}, lambda: numbered(1 if dies else 2))
        if dies:
            raise KeyboardInterrupt
        return made

    with pytest.raises(KeyboardInterrupt):
        kept.get_or_compute("ap", {}, lambda: compute(dies=True))
    (part,) = tmp_path.glob("part-*.safetensors")
    part.write_bytes(part.read_bytes()[:-3])
    assert kept.get_or_compute("ap", {}, lambda: compute(dies=False))["effect"] == 2
