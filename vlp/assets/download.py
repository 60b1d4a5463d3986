"""One file from one of several mirrors: never more bytes than stated, on from where it stopped, and whole or not there.

The bytes go into NAME.part beside the file, which only one process writes at a time, and which the next start goes on
with. It becomes the file when its SHA-256 is right. Python's own urllib is used: what goes on by `Range` and counts
bytes while it reads needs the reading loop for itself, which libraries for this (pooch, for one) keep to themselves.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.client
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    url2pathname,
)

from vlp.assets.registry import PART, AssetError, File, check_url

CHUNK = 1 << 18  # bytes read at a time
SLOWEST = 100  # bytes a second below which a mirror is given up
TRIES = 4  # of a mirror in a row that bring less than WORTH
WORTH = 1 << 20  # bytes that make up for a cut connection
PASSING = {429, 500, 502, 503, 504}  # answers that may be another the next time


@dataclass(frozen=True)
class Ways:
    """How to fetch. `timeout`: seconds without a connection or a byte after which a mirror is given up. `pause`:
    seconds before it is asked again. `tell`: takes lines for the user. `progress`: takes the bytes that are there and
    those that there will be.
    """

    timeout: float = 30.0
    pause: float = 1.0
    tell: Callable[[str], None] = lambda line: None
    progress: Callable[[int, int], None] = lambda here, of: None


class MirrorError(Exception):
    """Why a mirror didn't give the file. `again`: whether it may the next time."""

    def __init__(self, reason: str, again: bool = False):
        super().__init__(reason)
        self.again = again


def fetch(file: File, target: Path, ways: Ways = Ways()) -> None:
    """Make `target` the file, whose `sha256` is known, from the first of its mirrors that gives it.

    Several processes may do so at once: one fetches, and the others wait for it.

    Raises:
        AssetError: no mirror gave it; the message has each, and why. `target` is as it was then, and bytes that
            may be of use are in the part file.
        OSError: it can't be written.
    """
    assert file.sha256 is not None
    target.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    with _held(target, file, ways) as part:
        if part is None:
            return
        if part.seek(0, os.SEEK_END) and _complete(part, file, target):
            return
        for url in file.mirrors:
            try:
                if _from_mirror(url, part, file, target, ways):
                    return
            except MirrorError as error:
                failures.append(f"{shown(url)}: {error}")
                if len(failures) < len(file.mirrors):
                    ways.tell(f"{failures[-1]}; trying the next mirror")
        kept = os.fstat(part.fileno()).st_size
    tried = "".join(f"\n  {failure}" for failure in failures)
    rest = f"\n{kept:,} bytes are kept, and the next start goes on from there" * bool(kept)
    raise AssetError(f"{file.name} could not be fetched; tried were{tried}{rest}")


def hash_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_whole(target: Path, chunks: Iterator[bytes]) -> None:
    """A file that appears whole or not at all."""
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as stream:
            for chunk in chunks:
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)
    sync(target.parent)


def sync(folder: Path) -> None:
    """The names in a folder are on disk afterwards."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def shown(url: str) -> str:
    """A URL without its query, which may hold a key."""
    return url.partition("?")[0]


@contextmanager
def _held(target: Path, file: File, ways: Ways) -> Iterator[IO[bytes] | None]:
    """The part file, which no other process has; None if the file is there by then."""
    path = target.with_name(target.name + PART)
    told = False
    while True:
        stream = open(path, "a+b", buffering=0)  # noqa: SIM115 (closed below)
        try:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    ways.tell(f"{file.name}: another process fetches it; waiting for that")
                told = True
                fcntl.flock(stream, fcntl.LOCK_EX)
            # who had it may have made the file of it, or have thrown it away
            if not path.exists() or not os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                continue
            if target.is_file() and hash_of(target) == file.sha256:
                path.unlink()
                yield None
                return
            try:
                yield stream
            finally:
                if not os.fstat(stream.fileno()).st_size and path.exists():
                    path.unlink()
            return
        finally:
            stream.close()


def _from_mirror(url: str, part: IO[bytes], file: File, target: Path, ways: Ways) -> bool:
    """Fetch what is missing from one mirror; True, or a MirrorError."""
    best, poor, resumed, anew = os.fstat(part.fileno()).st_size, 0, False, False
    while True:
        try:
            resumed |= bool(_read_on(url, part, file.size, ways))
        except MirrorError as error:
            here = os.fstat(part.fileno()).st_size
            poor = 0 if here - best >= WORTH else poor + 1
            best = max(best, here)
            if not error.again or poor >= TRIES:
                raise
            ways.tell(f"{shown(url)}: {error}; asking again")
            time.sleep(ways.pause * max(poor, 1))
            resumed = True
            continue
        if _complete(part, file, target):
            return True
        wrong = _digest(part)
        part.truncate(0)
        if anew or not resumed:
            raise MirrorError(f"sends another file: its SHA-256 is {wrong}, stated is {file.sha256}")
        # the beginning may have been another mirror's, or of an earlier file
        ways.tell(f"{shown(url)}: the file is wrong once it is whole; beginning anew")
        best, poor, anew = 0, 0, True


def _complete(part: IO[bytes], file: File, target: Path) -> bool:
    """Whether the part is the whole file; then it has become it."""
    if file.size is not None and os.fstat(part.fileno()).st_size != file.size:
        return False
    if _digest(part) != file.sha256:
        return False
    os.fsync(part.fileno())
    os.replace(target.with_name(target.name + PART), target)
    sync(target.parent)
    return True


def _digest(part: IO[bytes]) -> str:
    part.seek(0)
    digest = hashlib.sha256()
    while chunk := part.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _read_on(url: str, part: IO[bytes], size: int | None, ways: Ways) -> int:
    """Append what the part lacks; returns where it began. A MirrorError if there are fewer bytes then."""
    start = os.fstat(part.fileno()).st_size
    if size is not None and start >= size:
        start = 0  # whole, and not it
    stream, start, total = _open(url, start, ways.timeout)
    with stream:
        if size is None:
            if total is None:
                raise MirrorError("it doesn't say how many bytes there are, and the registry doesn't either")
            if total > shutil.disk_usage(os.path.dirname(part.name)).free:
                raise MirrorError(f"it has {total:,} bytes, for which there is no room")
            size = total
        elif total is not None and total != size:
            raise MirrorError(f"it has a file of {total:,} bytes, and {size:,} are stated")
        part.truncate(start)
        here, mark, since = start, start, time.monotonic()
        ways.progress(here, size)
        while here < size:
            try:
                chunk = stream.read1(min(CHUNK, size - here))
            except TimeoutError:
                raise MirrorError(f"stalled at {here:,} of {size:,} bytes for {ways.timeout:g} s", True) from None
            except (OSError, http.client.HTTPException) as error:
                raise MirrorError(f"broke off at {here:,} of {size:,} bytes ({_reason(error)})", True) from error
            if not chunk:
                raise MirrorError(f"ended at {here:,} of {size:,} bytes", True)
            while chunk:  # not buffered, so that all that came is in the file when the process is killed
                written = part.write(chunk)
                here, chunk = here + written, chunk[written:]
            ways.progress(here, size)
            if time.monotonic() - since >= ways.timeout:
                if here - mark < SLOWEST * ways.timeout:
                    raise MirrorError(f"fewer than {SLOWEST} bytes a second, at {here:,} of {size:,} bytes", True)
                mark, since = here, time.monotonic()
    return start


def _open(url: str, start: int, timeout: float) -> tuple[Any, int, int | None]:
    """A stream of what is there from byte `start` on, or, where it can't be had, from 0; and the bytes of the file."""
    if url.startswith("file:"):
        return _open_file(Path(url2pathname(urlsplit(url).path)), start)
    headers = {"User-Agent": "vlp", "Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        answer = _opener().open(Request(url, headers=headers), timeout=timeout)
    except HTTPError as error:
        error.close()
        if error.code == 416 and start:
            return _open(url, 0, timeout)
        name = http.client.responses.get(error.code, "unknown")
        lost = ", and leads nowhere that is followed" * (300 <= error.code < 400)
        raise MirrorError(f"answers {error.code} {name}{lost}", error.code in PASSING) from error
    except (TimeoutError, URLError, OSError, http.client.HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, URLError) else error
        if isinstance(cause, TimeoutError):
            raise MirrorError(f"no answer for {timeout:g} s") from error
        cut = isinstance(cause, ConnectionResetError | http.client.RemoteDisconnected)
        raise MirrorError(f"no answer ({_reason(cause)})", cut) from error
    try:
        return answer, *_place(answer, start)
    except MirrorError:
        answer.close()
        raise


def _place(answer: http.client.HTTPResponse, start: int) -> tuple[int, int | None]:
    """Where the bytes of an answer begin, and how many the file has."""
    if answer.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
        raise MirrorError("it sends the file compressed, though it was asked not to")
    length = answer.headers.get("Content-Length", "")
    count = int(length) if re.fullmatch("[0-9]{1,18}", length) else None
    if answer.status == 206:
        place = answer.headers.get("Content-Range", "").strip()
        told = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", place)
        if told is None or int(told[1]) != start:
            raise MirrorError("it sends another range of bytes than it was asked for")
        return start, None if told[2] == "*" else int(told[2])
    if answer.status != 200:
        raise MirrorError(f"answers {answer.status}")
    return 0, count


def _open_file(path: Path, start: int) -> tuple[Any, int, int]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise MirrorError("it is no file")
        stream = open(path, "rb")  # noqa: SIM115 (closed by who asked)
    except OSError as error:
        raise MirrorError("there is no such file" if error.errno == errno.ENOENT else _reason(error)) from error
    size = os.fstat(stream.fileno()).st_size
    start = start if start <= size else 0
    stream.seek(start)
    return stream, start, size


def _opener() -> OpenerDirector:
    """Speaks HTTP and HTTPS alone, so that nothing leads elsewhere; proxies are those of the environment."""
    opener = OpenerDirector()
    for handler in (
        ProxyHandler(),
        HTTPHandler(),
        HTTPSHandler(),
        _Redirects(),
        HTTPErrorProcessor(),
        HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    return opener


class _Redirects(HTTPRedirectHandler):
    """Follows them to http and https; from https to https alone."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if not newurl.startswith(("https:", "http:")) or check_url(newurl):
            raise URLError(f"redirected to {shown(newurl)}, which is not followed")
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise URLError(f"redirected to {shown(newurl)}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _reason(error: object) -> str:
    """What an error says, on one line."""
    text = (error.strerror if isinstance(error, OSError) else "") or str(error)
    return " ".join((text or type(error).__name__).split())
