"""`python -m gradscale.run <script or command> ...`: the same as `gradscale run`, for launchers that start modules."""

import sys

from gradscale.cli.run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], program="python -m gradscale.run"))
