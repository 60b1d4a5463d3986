"""Downloads from a web server on loopback that is slow, lies, cuts, and sends other bytes; and from folders."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from web import Web, drips, endless, says, sends

from vlp.assets import download
from vlp.assets.download import Ways, fetch
from vlp.assets.registry import AssetError, File

DATA = random.Random(0).randbytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()
OTHER = DATA[:-1] + bytes([DATA[-1] ^ 1])
FAST = Ways(timeout=20.0, pause=0.0)
SHORT = Ways(timeout=1.5, pause=0.0)  # for what stalls; a machine that is busy answers within it


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    yield server
    server.close()


def asset(*urls: str, size: int | None = len(DATA)) -> File:
    return File("model.bin", size, SHA, urls)


def refused(file: File, target: Path, ways: Ways = FAST) -> str:
    """The message; what was there before is there still, and nothing else but a part."""
    before = target.read_bytes() if target.exists() else None
    with pytest.raises(AssetError) as caught:
        fetch(file, target, ways)
    assert (target.read_bytes() if target.exists() else None) == before
    assert {path.name for path in target.parent.iterdir()} <= {target.name, f"{target.name}.part"}
    return str(caught.value)


def test_whole_file(web: Web, tmp_path: Path) -> None:
    web.answers["/a"] = sends(DATA)
    seen: list[tuple[int, int]] = []
    fetch(asset(web.url("/a")), tmp_path / "deep/model.bin", Ways(progress=lambda *told: seen.append(told)))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model.bin"]
    assert (tmp_path / "deep/model.bin").read_bytes() == DATA
    assert seen[0] == (0, len(DATA))
    assert seen[-1] == (len(DATA), len(DATA))


def test_every_mirror_is_told_and_why(web: Web, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/a"
    web.answers |= {
        "/404": says(404),
        "/403": says(403),
        "/503": says(503),
        "/300": says(300),
        "/altered": sends(OTHER),
    }
    web.answers |= {"/zip": sends(DATA, Content_Encoding="gzip"), "/loop": says(302, Location="/loop")}
    (tmp_path / "folder").mkdir()
    expected = {
        nobody: "Connection refused",
        web.url("/404"): "answers 404 Not Found",
        web.url("/403"): "answers 403 Forbidden",
        web.url("/503"): "answers 503 Service Unavailable",
        web.url("/300"): "answers 300",
        web.url("/loop"): "answers 302",
        web.url("/altered"): f"another file: its SHA-256 is {hashlib.sha256(OTHER).hexdigest()}, stated is {SHA}",
        web.url("/zip"): "compressed",
        (tmp_path / "gone.bin").as_uri(): "there is no such file",
        (tmp_path / "folder").as_uri(): "it is no file",
    }
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/model.bin").write_bytes(b"an older one")
    told: list[str] = []
    message = refused(asset(*expected), tmp_path / "cache/model.bin", Ways(20.0, 0.0, told.append))
    lines = message.splitlines()
    assert len(lines) == 1 + len(expected)
    for line, (url, reason) in zip(lines[1:], expected.items(), strict=True):
        assert line.strip().startswith(f"{url}: "), line
        assert reason in line
    assert [path for path, _ in web.asked].count("/503") == 4  # which may pass, and the others not
    assert [path for path, _ in web.asked].count("/404") == 1
    assert sum("trying the next mirror" in line for line in told) == len(expected) - 1


def test_next_mirror_is_taken(web: Web, tmp_path: Path) -> None:
    web.answers |= {"/404": says(404), "/altered": sends(OTHER), "/good": sends(DATA), "/never": says(500)}
    urls = [web.url(path) for path in ("/404", "/altered", "/good", "/never")]
    fetch(asset(*urls), tmp_path / "model.bin", FAST)
    assert (tmp_path / "model.bin").read_bytes() == DATA
    assert [path for path, _ in web.asked] == ["/404", "/altered", "/good"]


def test_query_is_not_told(web: Web, tmp_path: Path) -> None:
    web.answers["/a?key=abc"] = says(403)
    assert "abc" not in refused(asset(web.url("/a?key=abc")), tmp_path / "model.bin")


@pytest.mark.parametrize("length", [10, len(DATA) - 1, len(DATA) + 1, 10**15])
def test_other_length_is_refused_before_it_is_read(web: Web, tmp_path: Path, length: int) -> None:
    web.answers["/a"] = sends(DATA, Content_Length=length)
    message = refused(asset(web.url("/a")), tmp_path / "model.bin")
    assert f"a file of {length:,} bytes, and 300,000 are stated" in message
    assert not list(tmp_path.iterdir())


def test_never_more_than_stated(web: Web, tmp_path: Path) -> None:
    web.answers["/a"] = endless
    most: list[int] = []
    message = refused(
        asset(web.url("/a")), tmp_path / "model.bin", Ways(5, 0, progress=lambda here, of: most.append(here))
    )
    assert "another file" in message
    assert max(most) == len(DATA)


def test_right_bytes_count_whatever_comes_after_them(web: Web, tmp_path: Path) -> None:
    web.answers["/a"] = sends(DATA + b"more", Content_Length=None)
    fetch(asset(web.url("/a")), tmp_path / "model.bin", FAST)
    assert (tmp_path / "model.bin").read_bytes() == DATA


@pytest.mark.parametrize("then", ["close", "reset", "stall"])
def test_a_cut_connection_goes_on_by_range(web: Web, tmp_path: Path, then: str) -> None:
    web.answers["/a"] = [sends(DATA, upto=100_000, then=then), sends(DATA, upto=250_000), sends(DATA)]
    fetch(asset(web.url("/a")), tmp_path / "model.bin", SHORT)
    assert (tmp_path / "model.bin").read_bytes() == DATA
    assert [place for _, place in web.asked] == ["", "bytes=100000-", "bytes=250000-"]


def test_without_ranges_it_begins_anew(web: Web, tmp_path: Path) -> None:
    web.answers["/a"] = [sends(DATA, False, upto=100_000), sends(DATA, False)]
    fetch(asset(web.url("/a")), tmp_path / "model.bin", FAST)
    assert (tmp_path / "model.bin").read_bytes() == DATA


def test_another_mirror_goes_on_where_one_gave_up(web: Web, tmp_path: Path) -> None:
    web.answers |= {"/cut": [sends(DATA, upto=100_000), says(404)], "/good": sends(DATA)}
    fetch(asset(web.url("/cut"), web.url("/good")), tmp_path / "model.bin", FAST)
    assert (tmp_path / "model.bin").read_bytes() == DATA
    assert web.asked[-1] == ("/good", "bytes=100000-")


def test_a_mirror_that_drips_is_given_up(web: Web, tmp_path: Path) -> None:
    web.answers["/a"] = drips
    message = refused(asset(web.url("/a"), size=100_000), tmp_path / "model.bin", Ways(0.3, 0.0))
    assert "fewer than 100 bytes a second" in message


def test_a_mirror_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a"
        assert "no answer for 0.3 s" in refused(asset(url), tmp_path / "model.bin", Ways(0.3, 0.0))


def test_noise_instead_of_http(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as noisy:

        def speak() -> None:
            connection, _ = noisy.accept()
            connection.recv(1000)
            connection.sendall(b"\x00\xff" * 50 + b"\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=speak)
        thread.start()
        message = refused(asset(f"http://127.0.0.1:{noisy.getsockname()[1]}/a"), tmp_path / "model.bin")
        thread.join()
    assert "no answer" in message


def test_a_part_is_kept_and_gone_on_with(web: Web, tmp_path: Path) -> None:
    web.answers["/a"] = [sends(DATA, upto=100_000), says(404), sends(DATA)]
    message = refused(asset(web.url("/a")), tmp_path / "model.bin")
    assert "100,000 bytes are kept" in message
    assert (tmp_path / "model.bin.part").read_bytes() == DATA[:100_000]
    fetch(asset(web.url("/a")), tmp_path / "model.bin", FAST)
    assert web.asked[-1] == ("/a", "bytes=100000-")
    assert [path.name for path in tmp_path.iterdir()] == ["model.bin"]


@pytest.mark.parametrize(
    "part", [OTHER[:-100], b"x" * 1000, OTHER, b"x" * 400_000], ids=["almost", "short", "whole", "too long"]
)
def test_a_wrong_part_costs_a_new_beginning_alone(web: Web, tmp_path: Path, part: bytes) -> None:
    web.answers["/a"] = sends(DATA)
    (tmp_path / "model.bin.part").write_bytes(part[::-1])
    fetch(asset(web.url("/a")), tmp_path / "model.bin", FAST)
    assert [path.name for path in tmp_path.iterdir()] == ["model.bin"]
    assert (tmp_path / "model.bin").read_bytes() == DATA


def test_a_whole_part_needs_no_mirror(tmp_path: Path) -> None:
    (tmp_path / "model.bin.part").write_bytes(DATA)
    fetch(asset(), tmp_path / "model.bin", FAST)
    assert (tmp_path / "model.bin").read_bytes() == DATA


def test_cuts_with_other_bytes_end(web: Web, tmp_path: Path) -> None:
    web.answers["/a"] = [step for _ in range(20) for step in (sends(OTHER, upto=100_000), sends(OTHER))]
    assert "another file" in refused(asset(web.url("/a")), tmp_path / "model.bin")
    assert len(web.asked) == 4  # anew once, since the first part could have been an earlier file's


def test_another_range_is_refused(web: Web, tmp_path: Path) -> None:
    web.answers["/a"] = sends(DATA, Content_Range="bytes 5-299999/300000")
    (tmp_path / "model.bin.part").write_bytes(DATA[:1000])
    assert "another range" in refused(asset(web.url("/a")), tmp_path / "model.bin")
    assert (tmp_path / "model.bin.part").read_bytes() == DATA[:1000]


def test_redirects_are_followed_to_http_alone(web: Web, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(DATA)
    web.answers |= {"/on": says(302, Location="/a"), "/a": sends(DATA)}
    web.answers["/file"] = says(302, Location=(tmp_path / "secret").as_uri())
    web.answers["/ftp"] = says(302, Location="ftp://127.0.0.1/a")
    fetch(asset(web.url("/on")), tmp_path / "one/model.bin", FAST)
    assert (tmp_path / "one/model.bin").read_bytes() == DATA
    assert "leads nowhere that is followed" in refused(asset(web.url("/file")), tmp_path / "two/model.bin")
    assert "redirected to ftp:" in refused(asset(web.url("/ftp")), tmp_path / "two/model.bin")


def test_a_redirect_keeps_the_range(web: Web, tmp_path: Path) -> None:
    web.answers |= {"/on": says(302, Location="/a"), "/a": sends(DATA)}
    (tmp_path / "model.bin.part").write_bytes(DATA[:1000])
    fetch(asset(web.url("/on")), tmp_path / "model.bin", FAST)
    assert web.asked[-1] == ("/a", "bytes=1000-")


def test_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a b.bin").write_bytes(DATA)
    (tmp_path / "long.bin").write_bytes(DATA + b"1")
    fetch(asset((tmp_path / "a b.bin").as_uri()), tmp_path / "to/model.bin", FAST)
    assert (tmp_path / "to/model.bin").read_bytes() == DATA
    assert "300,001 bytes, and 300,000 are stated" in refused(asset((tmp_path / "long.bin").as_uri()), tmp_path / "x/m")


def test_without_a_stated_size_the_mirror_must_say_it(web: Web, tmp_path: Path) -> None:
    web.answers |= {"/a": sends(DATA), "/endless": endless, "/huge": sends(DATA, Content_Length=10**17)}
    assert "doesn't say how many bytes" in refused(asset(web.url("/endless"), size=None), tmp_path / "model.bin")
    assert "no room" in refused(asset(web.url("/huge"), size=None), tmp_path / "model.bin")
    fetch(asset(web.url("/a"), size=None), tmp_path / "model.bin", FAST)
    assert (tmp_path / "model.bin").read_bytes() == DATA


def test_a_full_disk_is_no_fault_of_the_mirror(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    web.answers |= {"/a": sends(DATA), "/b": sends(DATA)}
    monkeypatch.setattr(download.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        fetch(asset(web.url("/a"), web.url("/b")), tmp_path / "model.bin", FAST)
    assert [path for path, _ in web.asked] == ["/a"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.bin.part"]


# as the command, in processes of their own


def registry(folder: Path, *urls: str) -> Path:
    lines = "".join(f"\n      - {url}" for url in urls)
    text = f"""assets:
  model.bin:
    what: numbers
    licence: CC0-1.0
    page: https://example.org
    size: {len(DATA)}
    sha256: {SHA}
    mirrors:{lines}
"""
    (folder / "own.yaml").write_text(text, encoding="utf-8")
    return folder / "own.yaml"


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "vlp", "assets", "get", "model.bin", "--registry", str(folder / "own.yaml"), *more]
    environment = os.environ | {"VLP_ASSETS": str(folder / "cache")}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, size: int) -> None:
    for _ in range(3000):
        if path.exists() and path.stat().st_size >= size:
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} did not come")


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_stopped_and_gone_on(web: Web, tmp_path: Path, sign: int) -> None:
    web.answers["/a"] = [sends(DATA, upto=200_000, then="stall"), sends(DATA)]
    registry(tmp_path, web.url("/a"))
    process = start(tmp_path)
    wait_for(tmp_path / "cache/model.bin.part", 200_000)
    process.send_signal(sign)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == (75 if sign == signal.SIGINT else -sign)
    assert ("goes on where it was" in errors) == (sign == signal.SIGINT)
    again = start(tmp_path)
    output, errors = again.communicate(timeout=90)
    assert again.returncode == 0, errors
    assert "fetching model.bin, 300.0 kB, of which 200.0 kB are here" in output
    assert [place for _, place in web.asked] == ["", "bytes=200000-"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["model.bin"]


def test_processes_at_once_fetch_it_once(web: Web, tmp_path: Path) -> None:
    release = threading.Event()

    def slowly(handler: object) -> None:
        release.wait(90)
        sends(DATA)(handler)

    web.answers["/a"] = slowly
    registry(tmp_path, web.url("/a"))
    words = [sys.executable, "-m", "vlp", "assets", "get", "model.bin", "--registry", str(tmp_path / "own.yaml")]
    words += ["--to", str(tmp_path / "out")]
    environment = os.environ | {"VLP_ASSETS": str(tmp_path / "cache")}
    said = [tmp_path / f"said{n}" for n in range(3)]
    processes = []
    for path in said:
        with path.open("w") as file:
            processes.append(subprocess.Popen(words, env=environment, stdout=file, stderr=subprocess.STDOUT))

    def waiting() -> int:
        return sum("waiting for that" in path.read_text() for path in said)

    until = time.monotonic() + 60
    while waiting() < 2 and time.monotonic() < until:
        time.sleep(0.05)
    release.set()
    codes = [process.wait(120) for process in processes]
    assert codes == [0, 0, 0], [path.read_text() for path in said]
    assert waiting() == 2
    assert len(web.asked) == 1
    assert (tmp_path / "cache/model.bin").read_bytes() == DATA
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.bin"]
