"""Turn OpenAI's pickles of DALL-E's coder into weights: `vlp convert-dvae`, from a checkout; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vlp.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["convert-dvae", *sys.argv[1:]]))
