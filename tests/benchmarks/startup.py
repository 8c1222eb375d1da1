"""Where the time of `igap run` on the embedded model goes, from the start of the process to its end.

    python tests/benchmarks/startup.py [--repeats N] [--json FILE]

Two kinds of process take turns: the command as a user types it, and one that does the same steps with a clock between
them. The first repetition, which fills the disk cache, is not counted.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = """
import json, os, time
times = [("Python", time.time())]
def lap(name): times.append((name, time.time()))
import torch; lap("import torch")
import transformers; lap("import transformers")
import transformer_lens.model_bridge; lap("import transformer_lens")
import captum.attr; lap("import captum")
from igap.models import cached
from igap import pipeline; from igap.cli.compose import compose_one; lap("import igap.pipeline")
config = compose_one([]).config; lap("compose the config (Hydra)")
model = cached.run_model(config); lap("load the model")
from igap.engine.open_pairs import contrast
with contrast(model, pipeline.check(config).pairs[0]) as question:
    question.gap.item()
lap("first number: F of both runs")
result = pipeline.run(config); lap("all attributions and their comparison")
from igap.output import disk; lap("import matplotlib, pandas")
from pathlib import Path
folder = Path("steps"); disk.prepare(folder); disk.write(result, folder); lap("plots and files")
import wandb; lap("import wandb")
from igap.output.tracking import wandb_run
wandb_run.log(folder, config.tracking); lap("W&B offline run")
start = float(os.environ["STARTED"])
print(json.dumps([[name, now - before] for (name, now), before in zip(times, [start] + [t for _, t in times])]))
"""
OURS = ("first number: F of both runs", "all attributions and their comparison", "plots and files")


def main() -> None:
    """Prints the table; writes every repetition as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    wholes, steps = [], []
    with tempfile.TemporaryDirectory() as folder:
        for repetition in range(arguments.repeats + 1):
            where = Path(folder, str(repetition))
            where.mkdir()
            since = time.perf_counter()
            subprocess.run(["igap", "run"], cwd=where, check=True, capture_output=True)
            whole = time.perf_counter() - since
            environment = {**os.environ, "STARTED": str(time.time())}
            command = [sys.executable, "-c", STEPS]
            output = subprocess.run(command, cwd=where, env=environment, check=True, capture_output=True, text=True)
            if repetition:
                wholes.append(whole)
                steps.append(dict(json.loads(output.stdout.splitlines()[-1])))
    medians = {name: statistics.median(step[name] for step in steps) for name in steps[0]}
    for name, seconds in medians.items():
        print(f"{name:<42}{seconds:7.2f} s")
    print(f"{'igap run, whole process':<42}{statistics.median(wholes):7.2f} s")
    print(f"{'of which our code after imports':<42}{sum(medians[name] for name in OURS):7.2f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps({"igap run": wholes, "steps": steps}, indent=2) + "\n")


if __name__ == "__main__":
    main()
