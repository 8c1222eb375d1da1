"""The process that logs one finished run online.

    python -m igap.output.tracking.online_process FOLDER TRACKING

TRACKING is the run's TrackingConfig as JSON.
"""

import sys
from pathlib import Path

from igap.config import TrackingConfig
from igap.output.tracking.writing import write

if __name__ == "__main__":
    write(Path(sys.argv[1]), TrackingConfig.model_validate_json(sys.argv[2]), "online")
