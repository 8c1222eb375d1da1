"""Folders that look like finished runs', written without computing anything: summary.json, config.json, SITE.csv."""

import csv
import json
import math
import random
from pathlib import Path

from igap.components import PLACES, component_name

COLUMNS = ("ig", "ap", "difference", "effect_ig", "effect_ap")


def make(folder, *, settings=None, summary=None, shape=(2, 3), seed=0, gap=4.0, sites=None, spans=None):
    """A run in `folder` whose scores are random; `settings` are nested as in config.json, gap None: without scores."""
    rng = random.Random(seed)
    folder = Path(folder)
    folder.mkdir(parents=True)
    config = {
        "model": {"name": "handmade"},
        "baseline": {"kind": "corrupted"},
        "ig": {"n_steps": 50, "tolerance": 1e-3},
    }
    for key, value in (settings or {}).items():
        group, _, name = key.partition(".")
        config[group] = {**config.get(group, {}), name: value} if name else value
    if sites is not None:
        config["sites"] = " ".join(sites)
    (folder / "config.json").write_text(json.dumps(config))
    for site in sites or ("heads",):
        _write_table(folder, site, shape, spans, rng, gap)
    numbers = {"gap": gap or 0.01, "heads/pearson": rng.uniform(-1, 1), "heads/max_abs_delta": math.exp(-rng.random())}
    words = {"schema": 1, "key": f"{seed:012x}", "model": config["model"]["name"], "version/igap": "0.1.0"}
    (folder / "summary.json").write_text(json.dumps({**numbers, **words, **(summary or {})}))
    return folder


def _write_table(folder, site, shape, spans, rng, gap):
    column = PLACES[site].column
    with (folder / f"{site}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "layer", *(["span"] if spans else []), *([column] if column else []), *COLUMNS])
        for layer in range(shape[0]):
            for span in spans or (None,):
                for index in range(shape[1] if column else 1):
                    ap = -(rng.expovariate(1) ** 3) / 20
                    effects = ap * rng.uniform(0.7, 1.2) + rng.gauss(0, 0.01), ap
                    ig, ap = ("", "") if gap is None else (effect / gap for effect in effects)
                    place = [layer, *([span] if spans else []), *([index] if column else [])]
                    row = [ig, ap, "" if gap is None else ap - ig, *effects]
                    writer.writerow([component_name(site, layer, index), *place, *row])
