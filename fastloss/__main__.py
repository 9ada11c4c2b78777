"""`python -m fastloss` is the same as the `fastloss` command."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
