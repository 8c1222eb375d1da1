"""How many rows a pass has, and what happens when they do not fit. No machine is made to run out: the errors are."""

import logging

import pytest
import torch

from igap import activation_patching, integrated_gradients
from igap.engine.batching import AdaptiveBatch, adaptive_batch
from igap.engine.forward import Suffix
from igap.engine.open_pairs import contrast

CPU = torch.device("cpu")
FULL = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"


class Small:
    """A machine that holds so many rows: `compute` refuses more, with the error given."""

    def __init__(self, capacity, error):
        self.capacity, self.error, self.tried = capacity, error, []

    def compute(self, items):
        self.tried.append(len(items))
        if len(items) > self.capacity:
            raise self.error
        return 2 * items


def test_the_budget_sets_the_rows_and_caches_bound_them_on_a_cpu():
    mib = 2**20
    assert adaptive_batch(mib, 64, CPU, memory_gib=1.0).number == 16
    assert adaptive_batch(mib, 64, CPU).number == 32  # 2 GiB unless told otherwise
    assert adaptive_batch(mib, 1, CPU).number == 100  # of MiB, what caches like
    assert adaptive_batch(200 * mib, 1, CPU).number == 1
    assert adaptive_batch(mib, 64, CPU, asked=500, memory_gib=1.0).number == 500


@pytest.mark.parametrize(
    "error", [RuntimeError(FULL), torch.OutOfMemoryError("CUDA out of memory"), MemoryError()], ids=type
)
def test_out_of_memory_halves_the_rows_goes_on_and_says_so_once(error, caplog):
    machine, rows = Small(3, error), AdaptiveBatch(10)
    with caplog.at_level(logging.WARNING, logger="igap"):
        done = list(rows.each(machine.compute, torch.arange(11)))
    assert torch.equal(torch.cat([made for _, made in done]), 2 * torch.arange(11))
    assert torch.equal(torch.cat([items for items, _ in done]), torch.arange(11))
    assert machine.tried == [10, 5, 2, 2, 2, 2, 2, 1]
    assert rows.number == 2
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with 10 rows a pass; going on with fewer. Set memory_gib lower to start there."
    ]


def test_one_row_that_does_not_fit_and_any_other_error_come_through():
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        list(AdaptiveBatch(4).each(Small(0, RuntimeError(FULL)).compute, torch.arange(4)))
    other = Small(0, RuntimeError("sizes differ"))
    with pytest.raises(RuntimeError, match="sizes differ"):
        list(AdaptiveBatch(4).each(other.compute, torch.arange(4)))
    assert other.tried == [4]


def test_an_item_of_many_rows_counts_as_many():
    machine = Small(100, MemoryError())
    list(AdaptiveBatch(10).each(machine.compute, torch.arange(7), rows_an_item=4))
    assert machine.tried == [2, 2, 2, 1]
    machine.tried.clear()
    list(AdaptiveBatch(3).each(machine.compute, torch.arange(2), rows_an_item=4))
    assert machine.tried == [1, 1]


@pytest.mark.parametrize("method", [activation_patching, integrated_gradients], ids=lambda m: m.__name__)
def test_results_after_running_out_are_those_of_before(small, pair, method, monkeypatch, caplog):
    expected = method(small(), pair, "neurons")
    after = Suffix._after

    def short(self, site, layer):
        metric = after(self, site, layer)

        def checked(written):
            if written.shape[1] > 5:
                raise RuntimeError(FULL)
            return metric(written)

        return checked

    monkeypatch.setattr(Suffix, "_after", short)
    found = method(small(), pair, "neurons", route="suffix")
    torch.testing.assert_close(found.effect, expected.effect, atol=1e-12, rtol=0)
    assert sum("out of memory" in record.getMessage() for record in caplog.records) == 1


def test_a_smaller_budget_makes_smaller_passes_and_gradients_and_hooks_need_more(small, pair):
    with contrast(small(), pair) as fast, contrast(small(), pair, route="hooks") as slow:
        tiny = 1e-3  # 1 MiB
        number = fast.rows(None, tiny, gradients=False).number
        assert number > 1
        assert fast.rows(None, tiny / 2, gradients=False).number == pytest.approx(number / 2, abs=1)
        assert fast.rows(None, tiny, gradients=True).number == pytest.approx(number / 3, abs=1)  # 3 blocks
        assert slow.rows(None, tiny, gradients=False).number < number


def test_where_no_row_fits_with_all_its_blocks_they_are_computed_again(small, pair):
    """As with prompts of thousands of tokens: the same gradients, with one block's activations held at a time."""
    model, held = small(), {}
    with contrast(model, pair) as question:
        start, _ = question.ends("heads", 0)
        for budget in (1e-3, 1e-4):  # GiB; a row takes 0.2 MiB in a block
            rows, sizes = question.rows(None, budget, gradients=True), []
            leaf = start[:, None].clone().requires_grad_()
            keep = torch.autograd.graph.saved_tensors_hooks(
                lambda kept, sizes=sizes: sizes.append(kept.numel()) or kept, lambda x: x
            )
            with torch.enable_grad(), keep:
                value = rows.attempt(lambda leaf=leaf: question.function("heads", 0)(leaf).sum(), 1)
            held[rows.recompute] = sum(sizes), torch.autograd.grad(value, leaf)[0]
    assert held[True][0] < held[False][0] / 2
    torch.testing.assert_close(held[True][1], held[False][1], atol=1e-14, rtol=0)
    whole, parts = (integrated_gradients(model, pair, "heads", memory_gib=budget) for budget in (1.0, 1e-4))
    torch.testing.assert_close(parts.effect, whole.effect, atol=1e-12, rtol=0)


def test_a_pass_that_holds_all_blocks_is_sized_for_all_of_them(small, pair):
    """Those of the whole model with hooks do, on either route: `stage` is in the engine."""
    with contrast(small(), pair) as fast, contrast(small(), pair, route="hooks") as slow:
        tiny = 1e-4  # GiB
        assert fast.rows(None, tiny, gradients=True).recompute
        whole, hooked = fast.rows(None, tiny, gradients=True, whole=True), slow.rows(None, tiny, gradients=True)
        assert (whole.number, whole.recompute) == (hooked.number, hooked.recompute) == (1, False)
        room = 1e-2
        number = fast.rows(None, room, gradients=True, whole=True).number
        assert number == slow.rows(None, room, gradients=True).number < fast.rows(None, room, gradients=True).number


@pytest.mark.parametrize("method", [activation_patching, integrated_gradients], ids=lambda m: m.__name__)
def test_a_budget_of_nothing_is_refused(small, pair, method):
    with pytest.raises(ValueError, match=r"^memory_gib: got 0\.0, wanted a number, above 0 or None\. Leave it out\."):
        method(small(), pair, "heads", memory_gib=0.0)
