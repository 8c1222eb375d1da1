"""`python -m igap.cli` is `igap`."""

import sys

from igap.cli import main

sys.exit(main())
