"""The converter of OpenAI's coder: modules that torch saved give their tensors; what else a pickle does is refused."""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

import vlp
from data_pipelines.pickles import ConversionError, read_objects
from vlp.checkpoints.key_map import export_state
from vlp.commands import convert_dvae, import_checkpoint
from vlp.commands.convert_dvae import PACKAGES, read_module, storage_of
from vlp.interfaces import SquareSize
from vlp.nn.pictures.openai_dvae import OpenAIDvae
from vlp.registry import IMPORTERS

ROOT = Path(__file__).parent.parent
CODES, WIDTH, CODE_WIDTH, GROUPS, BLOCKS = 24, 8, 12, 3, 2


class Conv(nn.Module):
    """As the official package's: parameters `w` and `b`."""

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.w, self.b = nn.Parameter(weight), nn.Parameter(bias)
        self.use_float16, self.device = True, torch.device("cpu")


class Tree(nn.Module):
    """A module of modules."""


def put(root: nn.Module, name: str, module: nn.Module) -> None:
    *begin, last = name.split(".")
    for part in begin:
        if not hasattr(root, part):
            root.add_module(part, Tree())
        root = getattr(root, part)
    root.add_module(last, module)


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conv and Tree are of a package that is called as the official one."""
    package = types.ModuleType("dall_e")
    for kind in (Conv, Tree):
        setattr(package, kind.__name__, kind)
        monkeypatch.setattr(kind, "__module__", "dall_e")
    monkeypatch.setitem(sys.modules, "dall_e", package)


def weights(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random weights in the official layout."""
    coder = OpenAIDvae(SquareSize(16), CODES, WIDTH, CODE_WIDTH, GROUPS, BLOCKS)
    state = {f"model.pictures.{name}": torch.randn_like(value) for name, value in coder.state_dict().items()}
    return {name: value.to(dtype) for name, value in export_state(state, IMPORTERS["openai_dvae"]).items()}


def module_of(state: dict[str, Tensor], side: str) -> nn.Module:
    """One side as a module of modules, with what the official ones have beside weights."""
    root: nn.Module = Tree()
    for name in [name for name in state if name.startswith(side) and name.endswith(".w")]:
        part = name.removeprefix(f"{side}.").removesuffix(".w")
        put(root, part, Conv(state[name], state[name.removesuffix("w") + "b"]))
    put(root, "blocks.group_1.pool", nn.MaxPool2d(2))
    put(root, "blocks.output.relu", nn.ReLU())
    return root


def saved(folder: Path, state: dict[str, Tensor]) -> list[str]:
    for side in ("encoder", "decoder"):
        torch.save(module_of(state, side), folder / f"{side}.pkl")
    return [str(folder / "encoder.pkl"), str(folder / "decoder.pkl"), str(folder / "dvae.safetensors")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_tensor_comes_out_as_it_went_in(dtype: torch.dtype, official: None, tmp_path: Path) -> None:
    state = weights(dtype)
    assert convert_dvae.main(saved(tmp_path, state)) == 0
    found = load_file(tmp_path / "dvae.safetensors")
    assert found.keys() == state.keys()
    assert any(".block_2." in name for name in found)
    for name, value in found.items():
        assert value.dtype == dtype
        assert torch.equal(value, state[name]), name


def test_the_file_is_imported(official: None, tmp_path: Path) -> None:
    """From two pickles to a run that computes what the coder of these weights does."""
    state = weights()
    assert convert_dvae.main(saved(tmp_path, state)) == 0
    coder = f"{{type: openai_dvae, codes: {CODES}, width: {WIDTH}, code_width: {CODE_WIDTH}, groups: {GROUPS}}}"
    given = ["openai_dvae", str(tmp_path / "dvae.safetensors"), f"--config={ROOT}/configs/dvae_small.yaml"]
    objective = "objectives.0.objectives=[{type: reproduction, error: logit_laplace}]"
    out = f"--out={tmp_path / 'run'}"
    assert import_checkpoint.main([*given, out, f"model.pictures={coder}", "model.pixels.size=16", objective]) == 0
    run = vlp.load(tmp_path / "run")
    back = export_state(run.state_dict(), IMPORTERS["openai_dvae"])
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert run.model.pictures(torch.rand(2, 3, 16, 16)).codes.shape == (2, 16)


def test_parts_of_larger_tensors(official: None, tmp_path: Path) -> None:
    """Offsets and strides are respected, and buffers are read."""
    whole = torch.randn(6, 8)
    module = Conv(whole[1:5, 2:7].t(), whole[5])
    module.register_buffer("steps", torch.arange(3))
    module.register_buffer("none", None)
    torch.save(module, tmp_path / "m.pkl")
    found = read_module(tmp_path / "m.pkl")
    assert found.keys() == {"w", "b", "steps"}
    assert torch.equal(found["w"], whole[1:5, 2:7].t())
    assert torch.equal(found["b"], whole[5])
    assert torch.equal(found["steps"], torch.arange(3))


# pickles that do something


class Calls:
    """What a malicious file would run: it makes a folder."""

    def __init__(self, mark: Path):
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.mark,)


def archive(path: Path, data: bytes, storage: bytes = b"", compress: int = zipfile.ZIP_STORED, **more: bytes) -> Path:
    """A file as torch saves them, with this pickle."""
    with zipfile.ZipFile(path, "w", compress) as file:
        file.writestr("m/data.pkl", data)
        file.writestr("m/data/0", storage)
        for name, content in more.items():
            file.writestr(f"m/{name}", content)
    return path


@pytest.mark.parametrize("protocol", range(1, 6))  # torch itself can't read modules of protocol 0
@pytest.mark.parametrize("inside", [False, True])
def test_nothing_is_run(
    protocol: int, inside: bool, official: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the pickle is a call, and where a call is an attribute of a module that is as it should be."""
    arguments, mark = saved(tmp_path, weights()), tmp_path / "mark"
    malicious: Any = Calls(mark)
    if inside:
        malicious = module_of(weights(), "encoder")
        malicious.note = Calls(mark)
    torch.save(malicious, tmp_path / "encoder.pkl", pickle_protocol=protocol)
    assert convert_dvae.main(arguments) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "could run code" in told
    assert "encoder.pkl" in told
    assert not mark.exists()
    assert not (tmp_path / "dvae.safetensors").exists()
    torch.load(tmp_path / "encoder.pkl", weights_only=False)  # the pickle must be one that works
    assert mark.exists()


MARK = b"(S'mark'\nt"  # a tuple of the folder to make
MODULE = b"cdall_e\nEncoder\n)\x81"


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nmkdir\n" + MARK + b"R.",
        b"cposix\nmkdir\n" + MARK + b"R.",
        b"(S'mark'\nios\nmkdir\n.",
        b"(cos\nmkdir\nS'mark'\no.",
        b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + MARK + b"R.",
        b"c__builtin__\neval\n" + b"(S'1'\ntR.",
        b"c__builtin__\ngetattr\n(c__builtin__\nset\nS'__doc__'\ntR.",
        b"cbuiltins\nset.__class__\n.",
        b"csubprocess\nPopen\n" + MARK + b"\x81.",
        b"ctorch\nos\n" + MARK + b"R.",  # held, and no module
        b"ctorch.hub\nload\n" + MARK + b"R.",
        b"ctorch._utils\n_rebuild_tensor_v2\n" + MARK + b"R.",
        MODULE + b"}S'__setstate__'\ncos\nsystem\nsb.",
        b"cdall_e\nEncoder\n}S'a'\nNsb.",  # the state of a class
        b"](}S'__setstate__'\nNsb.",
        b"\x80\x02\x82\x01.",
        b"\x80\x04)\x8f(K\x01\x90.",
        MODULE + b"K\x01b.",
        MODULE + b"}b.",
        MODULE + b"}S'_modules'\nK\x01sb.",
        MODULE + b"}S'_modules'\n}K\x01Nssb.",
        MODULE + b"}(S'_modules'\n}S'_parameters'\n}S'w'\nK\x05sub.",
        MODULE + b"q\x00}S'_modules'\n}S'own'\nh\x00ssb.",  # a module that holds itself
        MODULE + b"}S'_modules'\n}S'x'\nK\x01ssb.",
        b"K\x01Q.",
        b"\x80\x02X\xff\xff\xff\x7fa.",
        b"\x80\x02]r\xff\xff\xff\xff.",
        b"\x8b\xff\xff\xff\x7f.",
        b"R.",
        b"b.",
        b"\x81.",
        b"",
        b"cdall_e",
        b"]" * 100_000 + b"a" * 99_999 + b".",
        b"no pickle",
    ],
)
def test_what_is_no_saved_module_is_refused(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = archive(tmp_path / "m.pkl", data)
    before = set(tmp_path.iterdir())
    with pytest.raises(ConversionError, match=r"m\.pkl"):
        read_module(path)
    assert set(tmp_path.iterdir()) == before


def test_modules_that_grow_without_end(tmp_path: Path) -> None:
    """Eight modules of ten references to the next: few bytes, a hundred million modules."""
    data = b"cdall_e\nM\n)\x81q\x00}S'_modules'\n}sb0"
    for level in range(1, 9):
        inner = b"".join(b"S'%d'\nh%c" % (number, level - 1) for number in range(10))
        data += b"cdall_e\nM\n)\x81q" + bytes([level]) + b"}S'_modules'\n}(" + inner + b"usb0"
    with pytest.raises(ConversionError, match="very many times"):
        read_module(archive(tmp_path / "m.pkl", data + b"h\x08."))


def test_modules_that_are_too_deep(tmp_path: Path) -> None:
    """Names of a deep module are as long as it is deep."""
    chain = b"cdall_e\nM\n)\x81}S'_modules'\n}S'x'\n" * 100 + b"cdall_e\nM\n)\x81}S'_modules'\n}sb" + b"ssb" * 100
    with pytest.raises(ConversionError, match="hold each other"):
        read_module(archive(tmp_path / "m.pkl", chain + b"."))


def tensor(
    size: str, stride: str, offset: int = 0, numbers: int = 6, kind: str = "FloatStorage", key: str = "0"
) -> bytes:
    """A module with one tensor of a storage."""
    storage = f"(S'storage'\nctorch\n{kind}\nS'{key}'\nS'cpu'\nI{numbers}\ntQ".encode()
    shape = b"".join(b"(" + b"".join(b"I%s\n" % n.encode() for n in part.split()) + b"t" for part in (size, stride))
    made = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"I%d\n" % offset + shape + b"I00\n" + b"NtR"
    return MODULE + b"}(S'_modules'\n}S'_parameters'\n}S'w'\n" + made + b"sub."


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tensor("2 3", "3 1", 1), "doesn't fit its storage of 6 numbers"),
        (tensor("1000000000", "0"), "doesn't fit its storage of 6 numbers"),
        (tensor("2 3", "-3 1", 5), "that is none"),
        (tensor("2 3", "1"), "doesn't fit"),
        (tensor("6", "1", -1), "that is none"),
        (tensor("7", "1", 0, 7), "24 bytes, not those of 7 numbers"),
        (tensor("9", "1", 0, 999999999999), "24 bytes, not those of"),
        (tensor("6", "1", 0, 6, "DoubleStorage"), "24 bytes, not those of 6 numbers"),
        (tensor("6", "1", 0, 6, "QInt8Storage"), "torch.QInt8Storage, which is not read"),
        (tensor("6", "1", key="../../secret"), "damaged, cut short"),
    ],
)
def test_tensors_that_do_not_fit(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=message):
        read_module(archive(tmp_path / "m.pkl", data, struct.pack("<6f", *range(6))))


def test_the_made_up_tensor_is_read(tmp_path: Path) -> None:
    """Or the test above would be of pickles that are wrong in another way."""
    numbers = struct.pack("<6f", *range(6))
    found = read_module(archive(tmp_path / "m.pkl", tensor("2 2", "1 3", 1), numbers))
    assert found["w"].tolist() == [[1, 4], [2, 5]]


def test_other_archives(official: None, tmp_path: Path) -> None:
    good, numbers = tensor("6", "1"), struct.pack("<6f", *range(6))
    with pytest.raises(ConversionError, match="compressed parts"):
        read_module(archive(tmp_path / "zip.pkl", good, numbers, zipfile.ZIP_DEFLATED))
    with pytest.raises(ConversionError, match="another order of bytes"):
        read_module(archive(tmp_path / "big.pkl", good, numbers, byteorder=b"big"))
    many = b"".join(b"S'w%d'\nh\x07" % number for number in range(1000))
    data = good.replace(b"S'w'\n", b"(S'w'\n").replace(b"NtRsub.", b"NtRq\x07" + many + b"uub.")
    with pytest.raises(ConversionError, match="larger than the file"):
        read_module(archive(tmp_path / "many.pkl", data, struct.pack("<600f", *range(600)).ljust(2400)[:24]))
    with zipfile.ZipFile(tmp_path / "none.pkl", "w") as file:
        file.writestr("x", "y")
    torch.save(nn.Linear(2, 2), tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    torch.save(module_of(weights(), "encoder"), tmp_path / "whole.pkl")
    whole = (tmp_path / "whole.pkl").read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        (tmp_path / "cut.pkl").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ConversionError, match=r"cut\.pkl"):
            read_module(tmp_path / "cut.pkl")
    flipped = bytearray(whole)
    flipped[whole.index(b"blocks")] ^= 1
    (tmp_path / "flipped.pkl").write_bytes(flipped)
    for name in ("none", "old", "flipped"):
        with pytest.raises(ConversionError, match=name):
            read_module(tmp_path / f"{name}.pkl")


def test_what_the_command_refuses(official: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder, decoder, out = saved(tmp_path, weights())
    torch.save(nn.Linear(2, 2), tmp_path / "linear.pkl")
    (tmp_path / "there.safetensors").write_text("mine")
    for arguments, message in (
        ([decoder, encoder, out], "give encoder.pkl first"),
        ([encoder, str(tmp_path / "linear.pkl"), out], "not the two parts of OpenAI's coder"),
        ([encoder, str(tmp_path / "no.pkl"), out], "No such file"),
        ([encoder, decoder, str(tmp_path / "out.pt")], "name a file *.safetensors"),
        ([encoder, decoder, str(tmp_path / "there.safetensors")], "is there already"),
    ):
        assert convert_dvae.main(arguments) == 1
        assert message in capsys.readouterr().err
    assert not Path(out).exists()
    assert (tmp_path / "there.safetensors").read_text() == "mine"


def refused_or_read(data: bytes) -> None:
    try:
        read_objects(data, PACKAGES, storage_of)
    except ConversionError:
        return


@given(st.lists(st.sampled_from([bytes([byte]) for byte in b"()]}.0129abcdehlqsutKNRQS\x81\x85\x86\x88"]), max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_instructions_are_followed_or_refused(parts: list[bytes]) -> None:
    refused_or_read(b"ctorch\nx\nq\x00" + b"".join(parts) + b".")


@given(st.integers(0, 10**6), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_any_damage_is_read_or_refused(place: int, byte: int) -> None:
    stream = io.BytesIO()
    torch.save(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), stream)
    with zipfile.ZipFile(stream) as file:
        data = bytearray(file.read(next(name for name in file.namelist() if name.endswith("data.pkl"))))
    data[place % len(data)] = byte
    refused_or_read(bytes(data))


def test_the_two_locks_hold_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With every instruction let through, no name is loaded all the same."""
    check: Callable[..., int] = lambda *given: 1  # noqa: E731
    monkeypatch.setattr("data_pipelines.pickles.check_instructions", check)
    for protocol in range(6):
        with pytest.raises(ConversionError, match=r"names posix\.mkdir"):
            read_objects(pickle.dumps(Calls(tmp_path / "mark"), protocol), PACKAGES, storage_of)
    with pytest.raises(ConversionError):
        read_objects(b"(S'mark'\nios\nmkdir\n.", PACKAGES, storage_of)
    assert not (tmp_path / "mark").exists()
