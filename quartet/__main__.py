"""`python -m quartet` is the command `quartet`."""

import sys

from quartet.cli.main import main

sys.exit(main())
