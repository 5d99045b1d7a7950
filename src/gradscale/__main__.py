"""`python -m gradscale`: the command line, where its script is not on the path."""

import sys

from gradscale.cli.main import main

sys.exit(main())
