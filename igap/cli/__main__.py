"""`python -m igap.cli` is `igap`."""

import sys

from igap.cli import main

if __name__ == "__main__":
    sys.exit(main())
