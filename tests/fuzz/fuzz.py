"""Damaged inputs for every reader: each must be read, or refused by an error of our own that says why, in time.

Goes round the readers until its time is over. An input follows from its reader, number and seed alone; the counts say
which number is next, so that another start goes on. The exit code is 1 if anything else than that ever came.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "data_pipelines"), str(HERE.parent.parent)]

from fuzzed import READERS  # noqa: E402

from data_pipelines.annotations.files import AnnotationError  # noqa: E402
from data_pipelines.features.published.record import FeatureFileError  # noqa: E402
from data_pipelines.shards.format import BadSampleError, ShardError  # noqa: E402
from vlp.commands.command import Parser, run_command  # noqa: E402
from vlp.config import ConfigError  # noqa: E402

OURS = (AnnotationError, FeatureFileError, ShardError, BadSampleError, ConfigError, OSError)
LONGEST = 10  # seconds of computing that an input of some kilobytes may take; twelve times that by the clock
WRITE_EVERY = 30  # seconds between two writings of the counts


class TooLongError(BaseException):
    """An input takes longer than it may; no reader catches it."""


def try_input(reader: str, number: int, seed: int, folder: Path) -> tuple[str, str]:
    """What becomes of an input: `read`, `refused`, or `broken`; and what was said."""
    rng = random.Random(f"{seed}/{reader}/{number}")
    damaged = READERS[reader].lay(folder, rng)
    for kind in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(kind, _too_long)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)  # another's work on this machine is no fault of the reader
    signal.setitimer(signal.ITIMER_REAL, 12 * LONGEST)  # and one that waits computes nothing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            READERS[reader].read(folder)
        return "read", ""
    except OURS as error:
        return "refused", str(error).encode("utf-8", "backslashreplace").decode()
    except (Exception, TooLongError) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{damaged}: {type(error).__name__}: {str(error)[:200]!r} in {Path(where.filename).name}:{where.lineno}"
        return "broken", told
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _too_long(signum: int, frame: Any) -> None:
    raise TooLongError(f"more than {LONGEST} seconds of computing, or {12 * LONGEST} by the clock")


def work(arguments: list[str]) -> int:
    """Fuzz, print what broke, and the counts."""
    parser = Parser(prog="fuzz.py", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long")
    parser.add_argument("--seed", type=int, default=0, help="that all inputs follow from")
    parser.add_argument("--readers", default=",".join(READERS), help="with commas between them")
    parser.add_argument("--counts", type=Path, default=HERE.parent.parent / "runs" / "fuzz.json", help="file of counts")
    parser.add_argument("--input", metavar="READER:NUMBER", help="this one once more, uncounted, with its traceback")
    options = parser.read(arguments)
    unknown = [name for name in options.readers.split(",") if name not in READERS]
    if unknown:
        raise ConfigError(f"there is no reader {unknown[0]!r}; there are {', '.join(READERS)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "files"
        if options.input:
            reader, _, number = options.input.partition(":")
            READERS[reader].lay(folder, random.Random(f"{options.seed}/{reader}/{int(number)}"))
            READERS[reader].read(folder)
            return 0
        counts = _read_counts(options.counts, options.seed)
        options.counts.parent.mkdir(parents=True, exist_ok=True)
        until = time.monotonic() + options.seconds
        written = time.monotonic()
        while time.monotonic() < until:
            for reader in options.readers.split(","):
                own = counts["readers"].setdefault(reader, {"read": 0, "refused": 0, "broken": 0})
                number = sum(own.values())
                outcome, told = try_input(reader, number, options.seed, folder)
                own[outcome] += 1
                if outcome == "broken":
                    print(f"{reader}:{number} (seed {options.seed}) {told}", flush=True)
            if time.monotonic() > written + WRITE_EVERY:  # so that a kill costs little
                options.counts.write_text(json.dumps(counts, indent=1))
                written = time.monotonic()
    options.counts.write_text(json.dumps(counts, indent=1))
    for reader, own in counts["readers"].items():
        told = ", ".join(f"{count} {outcome}" for outcome, count in own.items())
        print(f"{reader:20} {sum(own.values()):8} inputs: {told}")
    inputs = sum(sum(own.values()) for own in counts["readers"].values())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{inputs} inputs; this start took at most {memory} MiB of memory")
    return int(any(own["broken"] for own in counts["readers"].values()))


def _read_counts(path: Path, seed: int) -> dict[str, Any]:
    """Counts of an earlier start with this seed, or none."""
    if path.is_file():
        counts: dict[str, Any] = json.loads(path.read_text())
        if counts["seed"] == seed:
            return counts
    return {"seed": seed, "readers": {}}


if __name__ == "__main__":
    sys.exit(run_command(work, sys.argv[1:]))
