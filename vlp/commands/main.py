"""The console command `vlp`: a command of its own for each thing to do, loaded when it is asked for."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

# name: module of this package, what it does
COMMANDS = {
    "train": ("train", "train a model, or fine-tune one"),
    "evaluate": ("evaluate", "measure a run on its task: questions, statements, expressions, captions"),
    "retrieve": ("retrieve", "measure zero-shot retrieval, and draw it"),
    "classify": ("classify", "measure zero-shot classification of pictures"),
    "predict": ("predict", "answer a question about a picture, or describe it"),
    "generate": ("generate", "draw pictures of texts"),
    "data": ("data", "make a data set of shards"),
    "features": ("features", "add region features to a data set"),
    "inspect": ("inspect_data", "check a data set, and draw some of it"),
    "mine": ("mine", "find hard negatives for retrieval"),
    "import": ("import_checkpoint", "make a run of published weights"),
    "export": ("export_checkpoint", "write the weights of a run in another layout"),
    "compare": ("compare", "train and compare systems on tasks"),
    "learn": ("learn", "see whether each system learns"),
    "convert-dvae": ("convert_dvae", "turn OpenAI's pickles of DALL-E's coder into weights, without running them"),
    "convert-refcoco": ("convert_refcoco", "turn RefCOCO's pickles into JSON, without running them"),
    "assets": ("assets", "fetch published vocabularies, weights and data, and check them"),
    "list": ("list_configs", "list the configurations that come with vlp, or tasks"),
}


def usage() -> str:
    """All commands, a line each."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        ["usage: vlp COMMAND ...", "", *lines, "", "`vlp COMMAND --help` shows a command's options, and examples."]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    arguments: those after `vlp`; None: of the command line.
    """
    # threads that wait shouldn't spin: beside loader processes, or on a shared machine, steps would take ten times as
    # long; it is read when torch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    if name in ("", "-h", "--help"):
        sys.stdout.write(usage() + "\n")
        return 0 if name else 1
    if name == "--version":
        import vlp

        sys.stdout.write(f"vlp {vlp.__version__}\n")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"do you mean {near[0]}?" if near else "`vlp --help` lists them"
        sys.stderr.write(f"error: there is no command {name!r}; {hint}\n")
        return 1
    code: int = importlib.import_module(f"vlp.commands.{COMMANDS[name][0]}").main(rest[:-1])
    return code
