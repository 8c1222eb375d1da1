"""Every name of the package that a page states is one that can be imported."""

import pkgutil
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NO_NAMES = {"igap.log", "igap.fish", "igap.counterfactual.samplers.every_other"}
"""Files, and the module that a reader of `docs/extending/sampler.md` writes."""


def exists(name):
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def test_every_dotted_name_on_a_page_is_a_module_or_an_attribute_of_one():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {(name, page.name) for page in pages for name in re.findall(r"\bigap(?:\.\w+)+", page.read_text())}
    assert len(named) > 20
    assert {(name, page) for name, page in named if name not in NO_NAMES and not exists(name)} == set()
