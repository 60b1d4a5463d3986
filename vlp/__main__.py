"""`python -m vlp` is the command `vlp`."""

import sys

from vlp.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
