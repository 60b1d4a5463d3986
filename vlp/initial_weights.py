"""The weights that a run begins with: those of another run, or a published checkpoint's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vlp.checkpoints.by_token import SharedTokens, by_token, word_rows
from vlp.checkpoints.declared import declared
from vlp.checkpoints.key_map import KeyMap, KeyMismatchError, import_state
from vlp.checkpoints.load import (
    Exceptions,
    Loaded,
    WeightsMismatchError,
    load_listing,
    load_trunk,
    read_checkpoint,
    read_weights,
)
from vlp.checkpoints.prefixes import prefix_hint, spellings, without_prefix
from vlp.checkpoints.words import changes, faults
from vlp.config import ConfigError, InitConfig
from vlp.contracts import Start
from vlp.convert import unknown_key
from vlp.interfaces import Images, Tokenizer
from vlp.nn.positions import position_tables
from vlp.nn.unshaped import unshaped
from vlp.registry import IMPORTERS, MODELS
from vlp.run_folder import RunFolder, answers_of_objectives, weights_file
from vlp.text.choose import open_tokenizer
from vlp.text.tokenizer_file import TokenizerFile
from vlp.text.wordpiece import VocabularyError


def load_initial_weights(
    init: InitConfig, module: nn.Module, tokenizer: Tokenizer, answers: dict[str, list[str]]
) -> Loaded:
    """Load what `init` names into a module with `model` and `objectives`; says what became of each tensor.

    answers: what objectives of the module, by name, choose among, see `answers_of_objectives`.

    Raises:
        ConfigError: no such importer or run, a file that is not weights, a pattern that is no regular expression, a
            vocabulary that can't take the words of the weights, or a head that would take its answers for others.
        FileNotFoundError: there is no such file.
        KeyMismatchError: keys or shapes do not fit and are not listed as exceptions.
    """
    check_patterns(init)
    path = Path(init.path)
    notes: list[str] = []
    theirs = vocabulary_of_weights(init, tokenizer)
    if init.importer is None:
        tensors = read_run(path)
    else:
        published = read_layout(path, init.importer, notes.append)
        tensors = published.ours
        notes += compare_settings(module, path, published.theirs)
    if theirs is not None:
        tensors = _by_token(init, module, tensors, theirs, tokenizer, notes.append)
    exceptions = Exceptions(init.may_be_missing, init.may_be_unused, init.may_differ_in_rows)
    try:
        loaded = load_listing(module, tensors, init.path, exceptions, position_tables(module))
    except WeightsMismatchError as error:
        kinds = {name: model.parameters_begin for name, model in MODELS.items()}
        told = "".join(f"\n- {line}" for line in faults(error, tensors, module.state_dict(), kinds))
        raise KeyMismatchError(f"init: the weights of {init.path} do not fit the configuration:{told}") from error
    loaded.told[:0] = notes
    model: Any = module.model
    if init.importer is None:
        _check_answers(init, loaded, answers)
    elif model.words and theirs is None:
        _check_words(init, loaded, module, tensors, tokenizer)
    return loaded


def vocabulary_of_weights(init: InitConfig, tokenizer: Tokenizer) -> Tokenizer | None:
    """The vocabulary that the weights were trained with, where it isn't that of the run; None where it is the same, or
    isn't told.

    Raises:
        ConfigError: there is no such vocabulary, it is none for this run, or one of two equal ones is lower-cased.
    """
    if init.importer is None:
        if init.vocabulary is not None:
            raise ConfigError("init.vocabulary: a run has its vocabulary in its folder; leave it out")
        folder = RunFolder(weights_file(Path(init.path)).parent)
        theirs = folder.tokenizer(folder.read_config([]))
    elif init.vocabulary is None:
        return None
    else:
        try:
            theirs = open_tokenizer(init.vocabulary, tokenizer.lowercase)
        except (FileNotFoundError, VocabularyError) as error:
            raise ConfigError(f"init.vocabulary: {error}") from error
    if theirs.tokens == tokenizer.tokens and theirs.lowercase == tokenizer.lowercase:
        return None
    if theirs.tokens == tokenizer.tokens:
        raise ConfigError(
            f"init: {theirs.path} has the tokens of {tokenizer.path}, but one of them is lower-cased: set"
            f" data.tokenizer.lowercase={str(theirs.lowercase).lower()}"
        )
    if type(theirs) is not type(tokenizer):
        raise ConfigError(
            f"init: {theirs.path} is another kind of vocabulary than {tokenizer.path} ({type(theirs).__name__} and"
            f" {type(tokenizer).__name__}): tokens that are spelled alike don't mean the same in both; take one of the"
            " same kind"
        )
    return theirs


def _by_token(
    init: InitConfig,
    module: nn.Module,
    tensors: dict[str, Tensor],
    theirs: Tokenizer,
    ours: Tokenizer,
    say: Callable[[str], None],
) -> dict[str, Tensor]:
    """The tensors, of which those that have a row for each token have the rows that the model's own vocabulary asks
    for; what became of the tokens is said.

    Raises:
        ConfigError: rows of the model aren't tokens alone, or there are fewer or more in the file than tokens.
    """
    try:
        names = word_rows(module)
    except ValueError as error:
        raise ConfigError(
            f"init: {theirs.path} is another vocabulary than {ours.path}, and {error}: take that of the weights"
        ) from error
    for name in names:
        rows = len(tensors[name]) if name in tensors else len(theirs)
        if rows < len(theirs) or (init.importer is not None and rows > len(theirs)):
            raise ConfigError(
                f"init: {name} of {init.path} has {rows} rows, and the vocabulary {theirs.path} has {len(theirs)}"
                " tokens: it isn't the one of these weights"
            )
    shared = SharedTokens.of(ours.tokens, theirs.tokens)
    new = f", as {', '.join(map(repr, shared.new[:5]))}" if shared.new else ""
    say(
        f"word vectors by token, since {theirs.path} is another vocabulary than {ours.path}: {len(shared.ours):,} of"
        f" its {len(ours):,} tokens begin with those of the weights, {len(shared.new):,} are new and begin at"
        f" random{new}; {shared.left:,} of the weights are not used"
    )
    if theirs.lowercase != ours.lowercase:
        before, now = ("lower-cased" if one.lowercase else "read as they are" for one in (theirs, ours))
        say(f"warning: texts were {before} for these weights, and are {now} here")
    return by_token(tensors, module.state_dict(), names, shared)


def compare_settings(module: nn.Module, path: Path, names: Iterable[str]) -> list[str]:
    """Compare what parts of a module compute with to what a file of weights with these names, or one beside it, says.
    What is uncertain is returned, a line each.

    Raises:
        ConfigError: they differ, or a file beside it can't be read.
    """
    ours, told, wrong = dict(unshaped(module)), list[str](), list[str]()
    try:
        said = declared(path, names)
    except ValueError as error:
        raise ConfigError(f"init: {error}") from error
    for one in said:
        for part, settings in one.parts.items():
            for setting, theirs in settings.items():
                own = ours.get(part, {}).get(setting)
                if own is None or own.value == theirs:
                    continue
                line = f"{part}: {setting} is {own.value}, and {theirs} by {one.source}"
                # two ways to compute one function, which published copies of the same weights differ in
                if {own.value, theirs} == {"gelu", "gelu_tanh"}:
                    told.append(f"{line}; the two differ by 0.0005 at most")
                else:
                    wrong.append(f"{line}; set {part}.{own.change}")
    if wrong:
        lines = "".join(f"\n- {line}" for line in wrong)
        raise ConfigError(f"init: the configuration computes otherwise than these weights were trained to:{lines}")
    both = (ours.get(part, {}) for part in ("model.image", "model.text"))
    towers = [own["activation"].value for own in both if "activation" in own]
    if len(set(towers)) == 2 and "quick_gelu" in towers:
        told.append(
            f"the image tower has activation {towers[0]}, the text tower {towers[1]}: published models have one in"
            " both; compare model.image.name and model.text.name"
        )
    return [f"warning: {line}" for line in told]


def _check_words(
    init: InitConfig, loaded: Loaded, module: nn.Module, tensors: dict[str, Tensor], tokenizer: Tokenizer
) -> None:
    """Refuse a vocabulary of another length than that of a published file, of which this is all that is known; of a run
    of ours, which may have more rows than tokens, the vocabulary itself was compared.
    """
    model: Any = module.model
    table = model.tied("word_embeddings")
    for name in {name for name, p in module.named_parameters() if p is table} & set(loaded.loaded):
        words = len(tensors[name]) - (len(table) - model.words)  # without rows that aren't words, as of codes
        if words != len(tokenizer):
            raise ConfigError(
                f"init: {init.path} was trained with {words} tokens, and the vocabulary {tokenizer.path} has"
                f" {len(tokenizer)}, so that words would get the vectors of others: give the vocabulary of these"
                " weights, data.tokenizer.vocabulary, or name it, init.vocabulary=FILE: vectors are taken by token then"
            )


def calibrate(model: nn.Module, images: Callable[[int], Images]) -> None:
    """Make those parts of a model that are made from pictures, as a codebook of patches, but those that begin with the
    weights of a run.

    images: gives so many, the same ones whenever it is asked.
    """
    loaded: set[nn.Module] = {inner for _, start in _starts(model) for inner in start.trunk.modules()}
    for part in model.modules():
        if hasattr(part, "calibrate") and part not in loaded:
            made: Any = part
            made.calibrate(images(made.calibration_pictures))


def load_start_weights(model: nn.Module, tokenizer: Tokenizer) -> list[str]:
    """Load the weights that parts of a model begin with, as a backbone or a tower whose configuration names a file; see
    `vlp.contracts.Start`. What has to be known of it is returned, a line each.

    Raises:
        ConfigError: there is no such file, or it is another trunk's, or its numbers are not finite, or its words are
            those of another vocabulary than the run's.
    """
    told: list[str] = []
    for name, start in _starts(model):
        key = (start.begin or f"model.{name}.") + ("weights" if start.translate is None else "folder")
        try:
            path = Path(start.path)
            if start.vocabulary is not None:
                _check_tokens(Path(start.vocabulary), tokenizer)
            if start.translate is None:
                path = weights_file(path) if start.begin else path
                lines = load_trunk(start.trunk, path, start.left_out, start.begin, start.tables)
            else:
                lines = []
                path = _published_weights(path)
                tensors, told_of_it = start.translate(read_checkpoint(path, lines.append))
                lines += [*told_of_it, f"begins with {path}"]
                load_listing(start.trunk, tensors, str(path), Exceptions())
            told += [f"{key}: {line}" for line in lines]
        except (FileNotFoundError, ValueError) as error:
            raise ConfigError(f"{key}: {error}") from error
    return told


def _published_weights(folder: Path) -> Path:
    """The file of weights in a folder of transformers.

    Raises:
        FileNotFoundError: there is none that can be read.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    parts = next(iter(sorted(folder.glob("*.index.json"))), None)
    mend = (
        f"its weights are in several files, those of {parts.name}: save them as one, by save_pretrained(FOLDER,"
        " max_shard_size='100GB') of transformers"
        if parts
        else "set folder to null where the encoder begins with the weights of init, or at random, by its config alone"
    )
    raise FileNotFoundError(f"{folder} has no model.safetensors and no pytorch_model.bin; {mend}")


def _check_tokens(folder: Path, tokenizer: Tokenizer) -> None:
    """Refuse a vocabulary that is not that of a folder of transformers, where the folder has one.

    Raises:
        ConfigError: its tokens are others, or texts are changed before.
        FileNotFoundError, VocabularyError: it can't be used.
    """
    there = [folder / name for name in ("tokenizer.json", "vocab.txt") if (folder / name).is_file()]
    if there and open_tokenizer(there[0], tokenizer.lowercase).tokens != tokenizer.tokens:
        raise ConfigError(
            f"the weights of {folder} were trained with the tokens of {there[0]}, and {tokenizer.path} has others, so"
            f" that words would get the vectors of others: set data.tokenizer.vocabulary={folder.resolve()}"
        )
    if isinstance(tokenizer, TokenizerFile) and tokenizer.lowercase:
        raise ConfigError(
            f"{tokenizer.path} says itself how texts are read, and data.tokenizer.lowercase=true takes their signs away"
            " before, as SigLIP does: set it to false"
        )


def _starts(model: nn.Module) -> list[tuple[str, Start]]:
    """What parts of a model begin with, by the names of those that say so."""
    found: list[tuple[str, Start | None]] = [
        (name, part.start_weights()) for name, part in model.named_modules() if hasattr(part, "start_weights")
    ]
    return [(name, start) for name, start in found if start is not None]


def _check_answers(init: InitConfig, loaded: Loaded, answers: dict[str, list[str]]) -> None:
    """Refuse heads that were trained to choose among other answers, or the same in another order."""
    folder = RunFolder(weights_file(Path(init.path)).parent)
    of_theirs = answers_of_objectives(folder.read_config([]), folder.read_facts())
    for name, ours in answers.items():
        theirs = of_theirs.get(name, [])
        if theirs == ours or len(theirs) != len(ours):  # another number has another shape, which is seen anyway
            continue
        if any(t.startswith(f"objectives.{name}.") for t in loaded.loaded):
            raise ConfigError(
                f"init: the head {name} of {init.path} chooses among {len(theirs):,} answers ({', '.join(theirs[:3])}"
                f" ...), and the data's manifest lists others, or these in another order ({', '.join(ours[:3])}"
                " ...): give the objective another `name` in the configuration, so that its head is new"
            )


def describe(init: InitConfig, loaded: Loaded) -> str:
    """What was loaded, in words."""
    told = "".join(f"\n- {line}" for line in [*loaded.told, *changes(loaded)])
    return f"{len(loaded.loaded)} tensors begin with the weights of {init.path}{told}"


def check_patterns(init: InitConfig) -> None:
    """Refuse patterns that are not regular expressions."""
    for key in ("may_be_missing", "may_be_unused", "may_differ_in_rows"):
        for pattern in getattr(init, key):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"init.{key}: {pattern!r} is not a regular expression: {error}") from error


def read_run(path: Path) -> dict[str, Tensor]:
    """The weights of another run.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: it is no safetensors.
    """
    try:
        return read_weights(weights_file(path))
    except ValueError as error:
        raise ConfigError(f"init: {error}") from error


@dataclass(frozen=True)
class Published:
    """The weights of a file, by `theirs`, the names of its layout, and by `ours`."""

    theirs: dict[str, Tensor]
    ours: dict[str, Tensor]


def read_layout(path: Path, importer: str, say: Callable[[str], None] = lambda _: None) -> Published:
    """The weights of a file in the layout of an importer.

    say: told what was taken off the names, and what of the file is left out.

    Raises:
        ConfigError: there is no such importer, or the file is no weights.
        FileNotFoundError: there is no such file.
        KeyMismatchError: it has another layout.
    """
    if importer not in IMPORTERS:
        raise unknown_key("init.importer", importer, IMPORTERS)
    try:
        theirs = read_checkpoint(path, say)
    except ValueError as error:
        raise ConfigError(f"init: {error}") from error
    notes: list[str] = []
    theirs = without_prefix(theirs, lambda named: _faults(named, IMPORTERS[importer]), notes.append)
    try:
        ours = import_state(theirs, IMPORTERS[importer])
    except KeyMismatchError as error:
        ways = [named for named, _ in spellings(theirs)]
        fitting = [name for name, key_map in IMPORTERS.items() if any(not _faults(named, key_map) for named in ways)]
        hint = f"\nit has the layout {' or '.join(fitting)}" if fitting else prefix_hint(theirs)
        read = "".join(f"\n{note}" for note in notes)
        raise KeyMismatchError(f"{path} does not have the layout {importer}: {error}{read}{hint}") from error
    for note in notes:
        say(note)
    return Published(theirs, ours)


def _faults(theirs: Mapping[str, Tensor], key_map: KeyMap) -> int:
    """How many keys don't fit a layout."""
    try:
        import_state(theirs, key_map)
    except KeyMismatchError as error:
        return error.count
    return 0
