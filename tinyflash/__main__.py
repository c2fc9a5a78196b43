"""`python -m tinyflash`: the command, where its script is not on the PATH."""

import sys

from tinyflash.cli import main

if __name__ == "__main__":
    sys.exit(main())
