"""Make a data set of shards: `vlp data`, from a checkout; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vlp.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["data", *sys.argv[1:]]))
