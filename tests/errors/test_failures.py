"""What fails costs itself only, and is told in one line."""

import pytest

from igap.errors import InputError
from igap.errors.failures import collect_failure, reason_of


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InputError("item: got 1, wanted 2."), "item: got 1, wanted 2."),
        (ValueError("two\n  lines"), "two lines"),
        (KeyError("x"), "KeyError: 'x'"),
        (MemoryError(), "MemoryError"),
        (OSError(28, "No space left on device", "a.csv"), "a.csv cannot be written or read (No space left on device)"),
        (OSError("strange"), "strange"),
    ],
)
def test_a_reason_is_one_line_that_says_what_and_where(error, reason):
    failures = {}
    with collect_failure("curves", failures):
        raise error
    assert failures["curves"].reason == reason == reason_of(error)
    assert failures["curves"].story.startswith("Traceback")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_no_failure(kind):
    failures = {}
    with pytest.raises(kind), collect_failure("curves", failures):
        raise kind
    assert not failures


def test_a_line_too_long_to_read_keeps_its_item_and_its_remedy():
    text = str(InputError(f"prompts.clean: got {'x' * 5000}, wanted less. Shorten it.\n  clean: a|b"))
    assert text.startswith("prompts.clean: got xxx")
    assert text.endswith("xxx, wanted less. Shorten it.\n  clean: a|b")
    assert len(text) < 1300
