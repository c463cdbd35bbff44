"""python -m diffax, the same as the console script."""

import sys

from diffax.cli import main

if __name__ == "__main__":
    sys.exit(main())
