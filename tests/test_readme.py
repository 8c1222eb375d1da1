"""What the README shows is what happens. Its links, and the site's pages, are tested in docs/."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_two_commands_stand_there_as_they_are():
    assert README.count("pip install -e . -c constraints.txt && igap run\n") == 1
    assert README.count('pip install -e ".[dev]" -c constraints.txt && pytest\n') == 1


def test_its_python_gives_the_figure_it_states(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    stated = re.search(r"\[layer, head\]; (\d\.\d+)", code)[1]
    assert float(capsys.readouterr().out.split()[-1]) == pytest.approx(float(stated), abs=5e-4)


def test_its_figures_are_those_of_the_embedded_model(ioi_mini, pair):
    from igap import activation_patching, compare, integrated_gradients

    for site in ("heads", "neurons"):
        ig, ap = integrated_gradients(ioi_mini, pair, site), activation_patching(ioi_mini, pair, site)
        found = compare(ig, ap)
        row = next(line for line in README.splitlines() if line.startswith(f"│ {site} "))
        assert f"{found.pearson:.3f} [{found.pearson_low:.3f}, {found.pearson_high:.3f}]" in row
        assert f"{found.spearman:.3f} [{found.spearman_low:.3f}, {found.spearman_high:.3f}]" in row
        assert f"{found.jaccard_at(10):.3f} (chance" in row


def test_what_it_says_of_head_0_6_and_of_the_zero_baseline_is_so(ioi_mini, pair):
    from igap import activation_patching, compare, integrated_gradients, output_curve

    ap, ig = activation_patching(ioi_mini, pair), integrated_gradients(ioi_mini, pair)
    assert f"0.6: AP {ap.score[0, 6]:+.3f}, IG {ig.score[0, 6]:+.3f}; the difference of " in README
    clean = float(output_curve(ioi_mini, pair, ["0.6"], alphas=[0, 0.5, 1]).values[0, 0])
    assert f"falls from {clean:.2f} to {clean + ap.effect[0, 6]:.2f}]" in README
    zero = compare(integrated_gradients(ioi_mini, pair, baseline="zero", n_steps="auto"), ap).pearson
    assert f"falls from {compare(ig, ap).pearson:.3f} to\n{zero:.3f}" in README
