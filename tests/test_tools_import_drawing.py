"""`vlp import` and `vlp export` of coders of pictures and token decoders, on the small official weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import STATES, Golden
from safetensors.torch import load_file, save_file
from torch import Tensor

import vlp
from vlp.commands import generate
from vlp.commands.export_checkpoint import main as export_checkpoint
from vlp.commands.import_checkpoint import main

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "parity" / "golden"
PATTERNS = {"full": "full", "axial_row": "row", "axial_col": "column", "conv_like": "corner"}
CODERS = {
    "dalle_pytorch_vae": ("dalle/dvae_soft", "dvae_small", "discrete_vae"),
    "openai_dvae": ("dalle/openai_dvae", "dvae_small", "openai_dvae"),
    "cogview_vqvae": ("cogview/vqvae_stride6_res", "vqvae_small", "vq_vae"),
}
DECODERS = [f"dalle/{path.stem}" for path in sorted((GOLDEN / "dalle").glob("dalle_*.safetensors"))]
DECODERS.append("cogview/gpt_dense")
DVAE = "{type: discrete_vae, codes: 32, code_size: 8, width: 6, strides: [2, 2, 2]}"
VQVAE = "{type: vq_vae, codes: 80, code_size: 8, width: 8}"


def golden_of(name: str) -> Golden:
    return Golden.read(GOLDEN / f"{name}.safetensors")


def flow(**values: Any) -> str:
    return "{" + ", ".join(f"{key}: {json.dumps(value)}" for key, value in values.items()) + "}"


def coder_sizes(layout: str, c: dict[str, Any], side: int) -> list[str]:
    """What a configuration says of the coder of a golden file."""
    kind = CODERS[layout][2]
    sizes: dict[str, Any]
    error = "squared"
    if kind == "discrete_vae":
        sizes = {"codes": c["num_tokens"], "code_size": c["codebook_dim"], "width": c["hidden_dim"]}
        sizes |= {"strides": [2] * c["num_layers"], "blocks": c["num_resnet_blocks"]}
    elif kind == "openai_dvae":
        sizes = {"codes": c["vocab_size"], "width": c["n_hid"], "code_width": c["n_init"]}
        sizes |= {"groups": c["group_count"], "blocks": c["n_blk_per_group"]}
        error = "logit_laplace"
    else:
        sizes = {"codes": c["n_embed"], "code_size": c["embed_dim"], "width": c["channel"], "even": c["simple"]}
        sizes |= {"blocks": c["n_res_block"], "inner_width": INNER}
    more = [f"objectives.0.objectives=[{{type: reproduction, error: {error}}}]"]
    return [f"model.pictures={flow(type=kind, **sizes)}", f"model.pixels.size={side}", *more]


INNER = golden_of("cogview/vqvae_stride6_res").weights["enc_b.blocks.5.conv.1.weight"].shape[0]


def decoder_sizes(golden: Golden) -> list[str]:
    """What a configuration says of the decoder of a golden file."""
    c = golden.config
    if "n_img" in c:
        return [
            f"model.vocab_size={c['vocab_size'] - c['n_img']}", "model.pixels.size=32", f"model.pictures={VQVAE}",
            "model.max_tokens={caption: 5}", "model.template=[ROI1, caption, BASE, codes, EOI1]", "model.windows=null",
            "model.commands={PAD: 30, ROI1: 32, BASE: 35, EOI1: 39}", f"model.hidden_size={c['hidden_size']}",
            f"model.layers={c['num_layers']}", f"model.heads={c['heads']}", "model.head_size=12",
            f"model.mlp_size={4 * c['hidden_size']}",
        ]  # fmt: skip
    rotary = c.get("rotary_emb", True)
    settings: dict[str, Any] = {
        "template": ["PAD", "caption", "codes"], "vocab_size": c["num_text_tokens"],
        "hidden_size": c["dim"], "layers": c["depth"], "heads": c["heads"], "head_size": c["dim_head"],
        "mlp_size": 4 * c["dim"], "activation": "geglu", "qkv_bias": False, "layer_scale": True,
        "token_shift": c.get("shift_tokens", True), "positions": "rotary" if rotary else "axial",
        "sandwich": c.get("sandwich_norm", False), "reversible": c.get("reversible", False),
        "stable": c.get("stable", False), "tied": c.get("share_input_output_emb", False),
        "patterns": [PATTERNS[name] for name in c.get("attn_types", ["full"])],
    }  # fmt: skip
    own = [f"model.{key}={json.dumps(value)}" for key, value in settings.items()]
    length = f"model.max_tokens={{caption: {c['text_seq_len']}}}"
    return [*own, length, f"model.pixels.size={c['image_size']}", f"model.pictures={DVAE}"]


def write_words(path: Path, count: int) -> Path:
    """Words `wN` by their numbers, with the special tokens where no golden text has a word."""
    tokens = [f"w{number}" for number in range(count)]
    tokens[:5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    path.write_text("\n".join(tokens) + "\n")
    return path


def layout_of(golden: Golden) -> str:
    if "n_img" in golden.config:
        return "cogview"
    return "dalle_pytorch" if "text_emb.weight" in golden.weights else "dalle_pytorch_shared"


def decoder_arguments(golden: Golden, folder: Path, *more: str) -> list[str]:
    """With the file as the program of its authors saves it, and a vocabulary."""
    layout, c = layout_of(golden), golden.config
    if layout == "cogview":
        wrapped = {"module": golden.weights, "iteration": 7, "torch_rng_state": torch.get_rng_state()}
    else:
        wrapped = {"hparams": {"dim": c["dim"]}, "vae_params": None, "epoch": 3, "weights": golden.weights}
    torch.save(wrapped, folder / "weights.pt")
    words = write_words(folder / "vocab.txt", 30 if layout == "cogview" else c["num_text_tokens"])
    config = ROOT / "configs" / ("cogview_base.yaml" if layout == "cogview" else "dalle_small.yaml")
    file = [layout, str(folder / "weights.pt"), f"--config={config}", f"--out={folder / 'run'}"]
    return [*file, f"--vocabulary={words}", *decoder_sizes(golden), *more]


def coder_arguments(layout: str, golden: Golden, file: Path, out: Path, *more: str) -> list[str]:
    side = (golden.inputs["pixels"] if "pixels" in golden.inputs else golden.inputs["image"]).shape[-1]
    config = ROOT / "configs" / f"{CODERS[layout][1]}.yaml"
    sizes = coder_sizes(layout, golden.config, side)
    return [layout, str(file), f"--config={config}", f"--out={out}", *sizes, *more]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == expected[name].dtype, name
        if name == "transformer.pos_emb":  # computed anew
            torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-5)
        else:
            assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("layout", CODERS)
def test_a_coder(layout: str, tmp_path: Path) -> None:
    """From the file to a run that reproduces what the original does, and back to the file."""
    golden = golden_of(CODERS[layout][0])
    torch.save({f"module.{name}": value for name, value in golden.weights.items()}, tmp_path / "coder.pt")
    assert main(coder_arguments(layout, golden, tmp_path / "coder.pt", tmp_path / "run")) == 0
    run = vlp.load(tmp_path / "run")
    coder = run.model.pictures
    if layout == "openai_dvae":
        made = coder(golden.inputs["pixels"])
        golden.check("codes", made.codes.view(-1, *coder.grid), **STATES)
        golden.check("reconstruction", made.shown, **STATES)
    elif layout == "dalle_pytorch_vae":
        made = coder(golden.inputs["image"])
        golden.check("codes", made.codes, **STATES)
        golden.check("decoded_codes", made.reproduced, **STATES)
    else:
        made = coder(golden.inputs["image"] * coder.std + coder.mean)
        golden.check("ids", made.codes.view(-1, *coder.grid), **STATES)
        golden.check("decode_code", made.reproduced, **STATES)
    assert not (tmp_path / "run" / "vocabulary.txt").exists()
    assert export_checkpoint([str(tmp_path / "run"), f"--to={layout}", f"--out={tmp_path / 'out'}"]) == 0
    assert_same(load_file(tmp_path / "out" / "model.safetensors"), golden.weights)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder(name: str, tmp_path: Path) -> None:
    """Imported, exported to the file it was, and asked for pictures."""
    golden = golden_of(name)
    layout = layout_of(golden)
    more = ["init.may_be_missing=['^model.pictures']"] if layout == "cogview" else []
    assert main(decoder_arguments(golden, tmp_path, *more)) == 0
    run = str(tmp_path / "run")
    assert export_checkpoint([run, f"--to={layout}", f"--out={tmp_path / 'out'}"]) == 0
    assert_same(load_file(tmp_path / "out" / "model.safetensors"), golden.weights)
    words = ["--text=w14 w16 w18", "--text=w10", "--count=2", f"--out={tmp_path / 'page.png'}"]
    assert generate.main([run, *words]) == 0
    assert len(list((tmp_path / "page").glob("*.png"))) == 4


def test_an_imported_decoder_draws_what_the_original_does(tmp_path: Path) -> None:
    """From words, by way of the vocabulary, to the codes and the pictures."""
    golden = golden_of("dalle/dalle_full")
    assert main(decoder_arguments(golden, tmp_path)) == 0
    texts = [" ".join(f"w{number}" for number in own if number) for own in golden.inputs["text"].tolist()]
    drawn = vlp.load(tmp_path / "run").draw(texts, search="beams")
    golden.check("greedy_codes", torch.stack([own[0].codes for own in drawn]), **STATES)
    pixels = torch.stack([own[0].pixels for own in drawn])
    expected = ((golden.outputs["greedy_image"] + 1) / 2).clamp(0, 1).movedim(1, -1) * 255
    assert (pixels.float() - expected).abs().max() <= 0.51


def test_a_coder_of_its_own_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CogView's file lacks the coder; its run is named instead."""
    coder = golden_of("cogview/vqvae_stride6")
    torch.save(coder.weights, tmp_path / "coder.pt")
    sizes = "{type: vq_vae, codes: 24, code_size: 8, width: 16}"
    given = ["cogview_vqvae", str(tmp_path / "coder.pt"), f"--config={ROOT}/configs/vqvae_small.yaml"]
    own = [f"model.pictures={sizes}", "model.pixels.size=32", f"--out={tmp_path / 'coder'}"]
    assert main([*given, *own]) == 0
    golden = golden_of("cogview/gpt_dense")
    arguments = decoder_arguments(golden, tmp_path)
    with_coder = sizes.replace("}", f", weights: {tmp_path / 'coder'}}}")
    words = ["model.vocab_size=96", "model.commands={PAD: 30, ROI1: 32, BASE: 35, EOI1: 39}"]  # 120 rows with 24 codes
    missing = "init.may_be_missing=['^model.pictures']"
    assert main([*arguments, f"model.pictures={with_coder}", *words, missing]) == 0
    said = capsys.readouterr().out
    assert f"19 tensors begin with the weights of {tmp_path / 'coder'}" in said
    assert "at random" not in said
    held = vlp.load(tmp_path / "run").state_dict()
    imported = vlp.load(tmp_path / "coder").state_dict()
    assert all(torch.equal(held[name], value) for name, value in imported.items())
    shutil.rmtree(tmp_path / "run")
    capsys.readouterr()
    assert main([*arguments, f"model.pictures={with_coder}", *words]) == 1
    assert "model.pictures.weights=RUN" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "coder")
    assert main([*arguments, f"model.pictures={with_coder}", *words, missing]) == 1
    assert "model.pictures.weights: no weights file" in capsys.readouterr().err


def test_a_coder_inside_the_file_comes_first(tmp_path: Path) -> None:
    """The run that a configuration names is not looked for, where the file has the coder."""
    golden = golden_of("dalle/dalle_full")
    pictures = DVAE.replace("}", ", weights: runs/nowhere}")
    assert main([*decoder_arguments(golden, tmp_path), f"model.pictures={pictures}"]) == 0


def without(names: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {name: value for name, value in weights.items() if not name.startswith(names)}


@pytest.mark.parametrize(
    ("change", "more", "messages"),
    [
        (without("vae."), [], ["the coder of pictures, is not in the file (17 tensors)", "init.may_be_missing="]),
        (without("vae.decoder.1"), [], ["model.pictures.decoder.1.0 is not in the file (2 tensors)"]),
        (without("image_emb"), [], ["missing: image_emb.weight"]),
        (dict, [f"model.pictures={DVAE.replace('32', '40')}"],
         ["98 rows in the file, 106 here", "model.pictures.codes", "(32, 8) in the file, (40, 8) in the model"]),
        (dict, ["model.max_tokens={caption: 7}"], ["98 rows in the file, 99 here"]),
        (dict, ["model.template=[START, caption, codes]"], ["98 rows in the file, 99 here"]),
        (dict, ["model.commands={X: 60}"], ["the id of X must be above 0 and below vocab_size, 60"]),
        (dict, ["model.commands={X: 58}"], ["vocab_size is 58 up to the first of its commands", "has 60"]),
        (dict, ["model.vocab_size=59"], ["model.vocab_size is 59"]),
        (dict, ["model.vocab_size=61", "model.max_tokens={caption: 5}"], ["trained with 61 tokens", "has 60"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_a_decoder(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    more: list[str],
    messages: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    golden = golden_of("dalle/dalle_full")
    golden.weights = change(golden.weights)
    assert main(decoder_arguments(golden, tmp_path, *more)) == 1
    told = capsys.readouterr().err
    for message in messages:
        assert message in told
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_a_coder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = golden_of("dalle/dvae_soft")
    torch.save(golden.weights, tmp_path / "coder.pt")
    arguments = coder_arguments("dalle_pytorch_vae", golden, tmp_path / "coder.pt", tmp_path / "run")
    words = f"--vocabulary={write_words(tmp_path / 'vocab.txt', 20)}"
    for given, messages in (
        ([*arguments, "model.pictures.width=12"], ["(10, 3, 4, 4) in the file, (12, 3, 4, 4) in the model"]),
        ([*arguments, "model.pictures.blocks=2"], ["model.pictures.decoder.5", "not in the file"]),
        ([*arguments, words], ["--vocabulary", "reads no text; leave it out"]),
        (["cogview_vqvae", *arguments[1:]], ["does not have the layout cogview_vqvae", "layout dalle_pytorch_vae"]),
    ):
        assert main(given) == 1
        told = capsys.readouterr().err
        for message in messages:
            assert message in told
    decoder = [one for one in decoder_arguments(golden_of("dalle/dalle_full"), tmp_path) if "vocabulary" not in one]
    assert main(decoder) == 1
    assert "give --vocabulary" in capsys.readouterr().err
    assert main(["dalle_pytorch_shared", *decoder_arguments(golden_of("dalle/dalle_full"), tmp_path)[1:]]) == 1
    assert "it has the layout dalle_pytorch\n" in capsys.readouterr().err + "\n"
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each layout has its own kind of coder."""
    golden = golden_of("dalle/dalle_full")
    other = "model.pictures={type: openai_dvae, codes: 32, width: 8, code_width: 8, groups: 4, blocks: 1}"
    missing = "init.may_be_missing=['^model.pictures']"
    golden.weights = without("vae.")(golden.weights)
    assert main(decoder_arguments(golden, tmp_path, other, missing)) == 0
    for layout in ("dalle_pytorch", "hf"):
        assert export_checkpoint([str(tmp_path / "run"), f"--to={layout}", f"--out={tmp_path / 'out'}"]) == 1
        assert "layouts that it can be written in: none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_safetensors_is_read_as_well(tmp_path: Path) -> None:
    golden = golden_of("dalle/dvae_soft")
    save_file(golden.weights, tmp_path / "coder.safetensors")
    assert main(coder_arguments("dalle_pytorch_vae", golden, tmp_path / "coder.safetensors", tmp_path / "run")) == 0
