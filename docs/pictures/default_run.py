"""The pictures of the default run that pages show, as `igap run` draws them.

python docs/pictures/default_run.py    # writes heads_scatter.png beside it; a minute
"""

import shutil
import tempfile
from pathlib import Path

from igap import cli

SHOWN = ("heads_scatter",)

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        if cli.main(["run", "tracking=disabled", f"plots={' '.join(SHOWN)}", f"hydra.run.dir={folder}/run"]):
            raise SystemExit("the run failed")
        for name in SHOWN:
            shutil.copy(Path(folder) / "run" / "plots" / f"{name}.png", Path(__file__).parent)
