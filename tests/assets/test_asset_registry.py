"""The registry is read strictly, and has all that configurations and pages name."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from vlp.assets.registry import AssetError, find, read_registry
from vlp.commands.data import BENCHMARKS, OTHERS
from vlp.strict_yaml import ConfigError

ROOT = Path(__file__).parents[2]
NO_FILES = {"clip", "apart", "joint"}  # values of a key `vocabulary` that name no file
# made by a command, or by training of one's own
MADE = {
    "bert.safetensors": "BERT's weights under a name of the page's own; bert-base-cased/model.safetensors is one",
    "own.txt": "vlp data vocabulary",
    "dvae.safetensors": "vlp convert-dvae",
    "vae.pt": "training with DALLE-pytorch",
    "dalle.pt": "training with DALLE-pytorch",
}


class Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


# folders of data that configurations name beside those called as a source of `vlp data`, and that source
SOURCES = {
    "books_wikipedia": "text",
    "flickr30k": "karpathy",
    "lait": "webdataset",  # never published; and one's own pairs
    "wenlan": "webdataset",
    "pairs": "webdataset",
    "nlvr1_statements": "nlvr1",
    "refcoco_plus": "refcoco",
    "refcocog": "refcoco",
    "vqa": "vqa_v2",
}


def own(assets: object, archives: object = None) -> dict[str, object]:
    return {"assets": assets} | ({} if archives is None else {"archives": archives})


SHA = "0a" * 32
PLAIN = {
    "what": "numbers",
    "licence": "MIT",
    "page": "https://example.org/a",
    "size": 10,
    "sha256": SHA,
    "mirrors": ["https://example.org/a.bin"],
}
ARCHIVE = {"size": 10, "sha256": SHA, "mirrors": []}
TOLD = {"what": "words", "licence": "MIT", "page": "https://example.org/a", "archive": "a.zip"}
MEMBER = TOLD | {"member": "a/vocab.txt", "size": 5, "sha256": SHA}
FOLDER = TOLD | {"folder": "a/data", "size": 5, "files": 2}
GOOD = own({"mine/a.bin": PLAIN, "mine/vocab.txt": MEMBER, "mine/data": FOLDER}, {"a.zip": ARCHIVE})


def read(folder: Path, tree: object) -> dict:
    (folder / "own.yaml").write_text(yaml.dump(tree, Dumper=Plain), encoding="utf-8")
    return read_registry(folder / "own.yaml")


def test_own_assets_come_beside_the_shipped(tmp_path: Path) -> None:
    assets = read(tmp_path, GOOD)
    assert set(assets) - set(read_registry()) == {"mine/a.bin", "mine/vocab.txt", "mine/data"}
    assert assets["mine/a.bin"].file.mirrors == ("https://example.org/a.bin",)
    assert assets["mine/vocab.txt"].file is assets["mine/data"].file
    assert (assets["mine/data"].files, assets["mine/data"].size, assets["mine/data"].sha256) == (2, 5, None)


def test_an_own_entry_can_say_a_hash_that_nobody_had(tmp_path: Path) -> None:
    assert read_registry()["uniter-base.pt"].sha256 is None
    assert read(tmp_path, own({"uniter-base.pt": PLAIN}))["uniter-base.pt"].sha256 == SHA
    with pytest.raises(ConfigError, match="vlp knows this asset, with a hash"):
        read(tmp_path, own({"bert-base-uncased/vocab.txt": PLAIN}))


WRONG = [
    (("mine/a.bin", "sha256"), "0A" * 32, "64 hexadecimal"),
    (("mine/a.bin", "sha256"), "ab", "64 hexadecimal"),
    (("mine/a.bin", "sha256"), None, "64 hexadecimal"),  # with a size
    (("mine/a.bin", "size"), -1, "at least 1"),
    (("mine/a.bin", "size"), True, "at least 1"),
    (("mine/a.bin", "size"), "10", "at least 1"),
    (("mine/a.bin", "size"), None, "at least 1"),  # with a hash
    (("mine/a.bin", "mirrors"), "https://example.org/a", "a list of URLs"),
    (("mine/a.bin", "mirrors"), ["ftp://example.org/a"], "https, http, file"),
    (("mine/a.bin", "mirrors"), ["https://me:secret@example.org/a"], "no name and password"),
    (("mine/a.bin", "mirrors"), ["https:///a"], "names no host"),
    (("mine/a.bin", "mirrors"), ["https://example.org:x/a"], "mirrors: https"),
    (("mine/a.bin", "mirrors"), ["file://elsewhere/a"], "file:///PATH"),
    (("mine/a.bin", "mirrors"), ["https://example.org/a b"], "%20"),
    (("mine/a.bin", "page"), "file:///a", "no URL of a page"),
    (("mine/a.bin", "what"), "", "a line of text"),
    (("mine/a.bin", "what"), "two\nlines", "a line of text"),
    (("mine/a.bin", "colour"), "red", "no key 'colour'"),
    (("mine/vocab.txt", "member"), "../vocab.txt", "no path within"),
    (("mine/vocab.txt", "member"), "/etc/passwd", "no path within"),
    (("mine/vocab.txt", "archive"), "b.zip", "no b.zip among"),
    (("mine/vocab.txt", "mirrors"), [], "no key 'mirrors'"),
    (("mine/data", "files"), 0, "at least 1"),
    (("mine/data", "folder"), "a/../b", "no path within"),
]


@pytest.mark.parametrize(("place", "value", "message"), WRONG, ids=range(len(WRONG)))
def test_wrong_entries_are_named(tmp_path: Path, place: tuple[str, str], value: object, message: str) -> None:
    tree = copy.deepcopy(GOOD)
    tree["assets"][place[0]][place[1]] = value
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, tree)
    assert f"own.yaml, assets.{place[0]}" in str(caught.value)


@pytest.mark.parametrize("name", ["../a", "/a", "a/../b", "a\\b", "", ".", "a//b", "a.part", "a.sha256", ".a", 3])
def test_names_stay_in_their_folder(tmp_path: Path, name: object) -> None:
    with pytest.raises(ConfigError, match="is no name"):
        read(tmp_path, own({name: PLAIN}))
    with pytest.raises(ConfigError, match="is no name"):
        read(tmp_path, own({}, {name: ARCHIVE}))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"archives": {}}, "key assets is missing"),
        (own([]), "must be a mapping"),
        (own({"a": 3}), "must be a mapping"),
        (own({"a.zip": PLAIN}, {"a.zip": ARCHIVE}), "an archive and an asset"),
        (own({}, {"a.rar": ARCHIVE}), "archives end in"),
        (own({"a": PLAIN, "a/b": PLAIN}), "would lie in a, which is a file"),
        (own({"x": MEMBER | {"archive": "easy_vqa-1.0-py3-none-any.whl"}}, {"easy_vqa-1.0-py3-none-any.whl": ARCHIVE}),
         "vlp knows another file"),
    ],
    ids=range(7),
)  # fmt: skip
def test_wrong_trees(tmp_path: Path, tree: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, tree)


@pytest.mark.parametrize("key", sorted(PLAIN))
def test_a_key_that_is_missing(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=f"the key {key} is missing"):
        read(tmp_path, own({"a": {k: v for k, v in PLAIN.items() if k != key}}))


def test_a_name_twice_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("assets:\n  a: {}\n  a: {}\n")
    with pytest.raises(ConfigError, match="repeated"):
        read_registry(tmp_path / "own.yaml")


def test_near_names_are_told() -> None:
    assets = read_registry()
    with pytest.raises(AssetError, match=r"do you mean bert-base-uncased/vocab\.txt"):
        find(assets, "vocab.txt")
    with pytest.raises(AssetError, match=r"do you mean uniter-base\.pt"):
        find(assets, "uniter-base.bin")


# what comes with vlp


def test_shipped_entries_can_be_had_or_say_where() -> None:
    """Files with hashes come from where packages are published; the others have a page, and no size."""
    for asset in read_registry().values():
        if asset.file.sha256:
            hosts = {urlsplit(url).hostname for url in asset.file.mirrors}
            assert hosts <= {"files.pythonhosted.org", "registry.npmjs.org", "deb.debian.org"}
            assert hosts, asset.name
        else:
            assert asset.size is None
        assert asset.page.startswith("https://")
        assert all(url.startswith("https://") for url in asset.file.mirrors)


def named_in_configs() -> set[tuple[str, str]]:
    """Configuration, and a file it names: vocabularies and weights, those of blocks that are commented too."""
    found = set()
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        names = re.findall(r"\bvocabulary: *([^\s,}#]+)", text)
        names += re.findall(r"\bpath: *([^\s,}#]+\.(?:safetensors|pt|pth|th|bin|pkl|npz|json|txt))", text)
        found |= {(path.relative_to(ROOT).as_posix(), name.removeprefix("data/")) for name in names}
    return found


def named_in_pages() -> set[tuple[str, str]]:
    """Page, and a file that one of its commands takes as published: weights and vocabularies."""
    found = set()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        names = re.findall(r"^vlp import \w+ (\S+)", text, re.MULTILINE)
        names += [name for pair in re.findall(r"^vlp convert-dvae (\S+) (\S+)", text, re.MULTILINE) for name in pair]
        names += re.findall(
            r"(?:--(?:vocabulary|weights|trunk-weights|classes) |vocabulary=|init\.path=)(\S+\.\w+)", text
        )
        found |= {(path.name, re.sub(r"^(\.\./|data/)", "", name.rstrip("`,.;)'"))) for name in names}
    return found


def is_made(name: str) -> bool:
    """Whether it is no file, or one that a command makes: `vlp data` the vocabulary of its data set, or another."""
    return name in NO_FILES or name in MADE or name.endswith("/vocabulary.txt")


def test_configurations_name_nothing_that_is_not_here() -> None:
    named = named_in_configs()
    assets = read_registry()
    assert {name for _, name in named} >= {"bert-base-cased/vocab.txt", "siglip/tokenizer.json", "uniter-base.pt"}
    missing = [(page, name) for page, name in sorted(named) if name not in assets and not is_made(name)]
    assert not missing


def test_pages_name_nothing_that_is_not_here() -> None:
    named = named_in_pages()
    assets = read_registry()
    assert {name for _, name in named} >= {"lxmert.pth", "encoder.pkl", "mobilenetv2_100.safetensors"}
    missing = [(page, name) for page, name in sorted(named) if name not in assets and not is_made(name)]
    assert not missing


def test_data_of_configurations_are_made_by_a_command() -> None:
    commands = {*BENCHMARKS, *OTHERS}
    named = set()
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        named |= set(re.findall(r"\{name: [^,]+, path: ([^\s,}#/.]+)", path.read_text(encoding="utf-8")))
    named = {name for name in named if not name.startswith("scene_")}  # made by themselves
    assert named >= {"coco", "vcr"}
    assert not {name for name in named if SOURCES.get(name, name) not in commands}


def test_the_registry_that_the_page_shows_is_read(tmp_path: Path) -> None:
    page = (ROOT / "docs/weights.md").read_text(encoding="utf-8")
    shown = re.search(r"```text\n(assets:\n.*?)```", page, re.DOTALL)
    assert shown
    (tmp_path / "own.yaml").write_text(shown[1].replace("its 64 hexadecimal digits", SHA), encoding="utf-8")
    assert len(read_registry(tmp_path / "own.yaml")["ours/uniter.pt"].file.mirrors) == 2
