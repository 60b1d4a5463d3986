"""A trained model, ready to embed, score, answer and write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlp.build import loads_of, name_of, pixel_size
from vlp.checkpoints.load import load_strictly, read_weights
from vlp.config import ConfigError, RunConfig, SourceConfig, ratio_for
from vlp.contracts import Ability
from vlp.convert import unknown_key
from vlp.evaluation.asking import likelihoods
from vlp.evaluation.captions import write
from vlp.interfaces import Batch, Images, Loads, Tokenizer
from vlp.registry import OBJECTIVES
from vlp.run_folder import DataFacts, RunFolder, answers_of_objectives, build_run, weights_file
from vlp.task_contracts import Prompt, Task
from vlp.use import embeddings, pairs, pictures
from vlp.use.images import Given, ImageMaker, check_finite, several, texts_of
from vlp.writing.settings import Writing

WHAT: dict[Ability, str] = {
    "pairs": "scores pairs of texts and images",
    "answers": "answers questions",
    "captions": "writes captions",
    "task": "answers questions or writes captions",
    "guidance": "learned without captions too",
}


class TrainedModel(nn.Module):
    """Model and objectives of a run in evaluation mode, with what is needed to feed them.

    Attributes:
        model: the encoder (`vlp.contracts.Model`; of a dual encoder `DualModel`).
        objectives: the trained objectives with their heads, by name.
        tokenizer, config, facts: the run's own.
        make_images: makes of files, pictures or arrays what the model sees (`vlp.use.images.ImageMaker`).
        source: where the run's data lies; of several the first, or the first that `group` is drawn for or names.
        class_names: of the regions of the data that is asked about: the run's own, unless they are set.

    Args:
        group: the name of that of the run's groups which is asked, where several could be, or of one of its sources.
        extractor: the files of weights of what makes regions of pictures, where the run's data was made with such.

    Wherever images are asked for they may be files, PIL pictures, arrays uint8 [h, w, 3] or `Regions`; a run that reads
    regions makes those of a picture as those of its data were made, if that was in a grid or by a detector.

    Raises:
        ConfigError: the run has no such group.
    """

    def __init__(
        self,
        model: nn.Module,
        objectives: nn.ModuleDict,
        tokenizer: Tokenizer,
        config: RunConfig,
        facts: DataFacts,
        group: str | None = None,
        extractor: Sequence[Path] = (),
    ):
        super().__init__()
        self.model: Any = model
        self.objectives = objectives
        self.tokenizer, self.config, self.facts = tokenizer, config, facts
        self.class_names = facts.class_names
        self.group = group
        self._of_group: dict[str, Any] = dict(objectives.items())
        self.source = config.data.sources[0]
        if group is not None:
            self._of_group, self.source = _objectives_of(config, objectives, group)
        made = facts.extractors.get(self.source.name, "")
        data = Path(config.data.root) / self.source.path
        self.make_images = ImageMaker(self.loads, facts.feature_size, made, data, extractor)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def loads(self) -> Loads:
        """What is loaded of data that the run is asked about."""
        return loads_of(self.config, self.source)

    @property
    def segments(self) -> Mapping[str, int]:
        """The segments of texts, with the most tokens of each."""
        return self.loads.segments

    @property
    def answer_names(self) -> list[str]:
        """The answers that the task chooses from; empty where none are."""
        name, _ = self._found("task")
        return answers_of_objectives(self.config, self.facts).get(name, [])

    @property
    def dual(self) -> bool:
        """Whether this is a dual encoder, which embeds texts and images apart."""
        return embeddings.is_dual(self)

    def able(self, ability: Ability) -> bool:
        """Whether the run trained an objective that can be asked for this."""
        return any(ability in getattr(objective, "abilities", ()) for objective in self._of_group.values())

    def find(self, ability: Ability) -> Any:
        """The objective that can be asked for this.

        Raises:
            ConfigError: the run trained none, several tasks, or one on other data than is asked about.
        """
        return self._found(ability)[1]

    def _found(self, ability: Ability) -> tuple[str, Any]:
        able = {
            name: objective
            for name, objective in self._of_group.items()
            if hasattr(objective, "abilities") and ability in objective.abilities
        }
        if not able:
            what = "this run" if self.group is None else f"the group {self.group} of this run"
            such = [kind for kind, o in OBJECTIVES.items() if hasattr(o, "abilities") and ability in o.abilities]
            raise ConfigError(
                f"{what} trained nothing that {WHAT[ability]}, as {', '.join(such)} do; its objectives are"
                f" {', '.join(self._of_group)}"
            )
        if len(able) > 1 and ability != "pairs":  # any that scores pairs can order them
            groups = ", ".join(group.name for group in self.config.objectives)
            raise ConfigError(
                f"this run trained several tasks ({', '.join(able)}); say which: --task GROUP (group=) of {groups}"
            )
        name, objective = next(iter(able.items()))
        self._check_source(name)
        return name, objective

    def _check_source(self, name: str) -> None:
        """Refuse to ask an objective, by name, with the segments, the token of the task or the answers of a source that
        it was not trained on, as the first of several may be.
        """
        for group in self.config.objectives:
            own = [name_of(listed) for listed in group.objectives]
            if name in own and not ratio_for(group.sampling_ratio, self.source.name) > 0:
                raise ConfigError(
                    f"{name} was trained on other sources than the run's first, {self.source.name}; say which group is"
                    f" asked: --task {group.name} (of {', '.join(group.name for group in self.config.objectives)})"
                )

    def matching(self) -> Any:
        """The objective that scores pairs of texts and images; see `find`."""
        return self.find("pairs")

    def task(self) -> Task:
        """The task that the run was trained on; see `find`."""
        task: Task = self.find("task")
        return task

    def prepared(self, batch: Batch) -> Batch:
        """The batch on the run's device, as of the source that is asked about.

        Raises:
            ValueError: what it says of an image is not finite.
        """
        check_finite(batch.images)
        return replace(batch, source=self.source.name).to(self.device)

    def answer_batch(self, batch: Batch) -> Tensor:
        """How likely each answer of `answer_names` is, float32 [questions, answers], of a clean batch.

        Of a task that chooses regions, how likely each region of the image is, float32 [questions, most regions]; one
        that does so for phrases has a row for each token of the questions, of which a phrase takes that of its last. Of
        questions with choices, how likely each choice is, float32 [questions, choices].
        """
        return likelihoods(self.find("answers"), self, batch)

    def answer(self, question: str, images: Given | Sequence[Given]) -> list[tuple[str, float]]:
        """All answers to a question about one image or two, the likeliest first, with how likely each is.

        Of a task that chooses regions they are the regions: `NUMBER: X1 Y1 X2 Y2`, corners as shares of the image. If
        it does so for phrases, these are put in brackets, as in "[a dog] on [the grass]"; the answers to each follow
        one another, and begin with it.
        """
        task = self.find("answers")
        (question,) = texts_of([question], "question")
        shown = [images] if isinstance(images, Given) else images
        return task.evaluation.reply(task, self, Prompt(question, self.make_images(shown))).rows

    def caption_batch(self, batch: Batch, keep: int = 1, **settings: Any) -> list[list[tuple[str, float]]]:
        """Captions of the pairs of a clean batch; see `vlp.evaluation.captions.write`."""
        return write(self.find("captions"), self, batch, Writing(**settings), keep)

    def caption(
        self, image: Given, tags: str = "", beams: int = 1, keep: int = 1, begin: str = "", **settings: Any
    ) -> list[tuple[str, float]]:
        """Captions of an image, the best first, each with its score: the mean logarithm of its words' probabilities,
        unless the settings say otherwise.

        Args:
            tags: the names of its objects, separated by commas, for a model that reads them, or a search that is to
                name them.
            beams: how many beginnings of a caption are followed, or samples drawn. keep: how many of them come back.
            begin: what each caption begins with.
            settings: others of `vlp.writing.settings.Writing`, as `search="sample", top_p=0.9`.

        Raises:
            ConfigError, ValueError: the run writes no captions, or none as is asked.
        """
        task = self.find("captions")
        how = {"beams": beams, **settings}
        prompt = Prompt(None, self.make_images([image]), tags=tags, begin=begin, settings=how, top=keep)
        return task.evaluation.reply(task, self, prompt).rows

    def draw(
        self, texts: Sequence[str], count: int = 1, guidance: float | None = None, **settings: Any
    ) -> list[list[pictures.Drawn]]:
        """Pictures of texts, `count` of each, the likeliest first; see `vlp.use.pictures.draw`.

        settings: of `vlp.writing.settings.Writing`, as `seed=1, top_k=100`; `search="beams"` takes the likeliest codes.

        Raises:
            ConfigError, ValueError: the run draws no pictures, or none as is asked.
        """
        how = Writing(**{"search": "sample", "beams": count, **settings})
        return pictures.draw(self, texts_of(texts, "text"), how, guidance)

    def generate(
        self, texts: Sequence[str], count: int = 1, seed: int = 0, guidance: float | None = None, **settings: Any
    ) -> Tensor:
        """Pictures uint8 [T, count, s, s, 3] of texts, the likeliest of each first; see `draw`."""
        drawn = self.draw(texts, count, guidance, seed=seed, **settings)
        return torch.stack([torch.stack([one.pixels for one in own]) for own in drawn])

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings float32 [T, D] by a dual encoder; see `vlp.use.embeddings.embed_texts`."""
        return embeddings.embed_texts(self, texts_of(texts, "text"))

    def embed_images(self, images: Sequence[Given]) -> Tensor:
        """Embeddings float32 [I, D] by a dual encoder; see `vlp.use.embeddings.embed_images`."""
        return embeddings.embed_images(self, self.make_images(images))

    def embed(self, captions: Sequence[str | None], images: Sequence[Given | None]) -> Tensor:
        """Pooled vectors float32 [n, H] of n pairs; see `vlp.use.embeddings.embed_pairs`."""
        captions, images = texts_of(captions, "caption", or_none=True), several(images, "images")
        made = iter(self.make_images([image for image in images if image is not None]))
        seen = [None if image is None else next(made) for image in images]
        return embeddings.embed_pairs(self, captions, seen, self.facts.feature_size)

    @torch.no_grad()
    def score(self, captions: Sequence[str], images: Sequence[Given]) -> Tensor:
        """How well each caption matches each image, float32 [T, I]; see `vlp.use.pairs.score`."""
        scored = None if self.dual else self.matching()
        return pairs.score(self, scored, texts_of(captions, "caption"), self.make_images(images))

    @torch.no_grad()
    def see(self, images: Images) -> Images:
        """The images with regions made from their pixels; see `vlp.use.pairs.see`."""
        return pairs.see(self, images)

    def score_batch(self, batch: Batch) -> Tensor:
        """Scores float32 [P] of a batch's pairs."""
        return pairs.score_batch(self, self.matching(), batch)


def _objectives_of(
    config: RunConfig, objectives: nn.ModuleDict, name: str
) -> tuple[dict[str, nn.Module], SourceConfig]:
    """The objectives of a group and the first source that it is drawn for, or, by the name of a source of one group
    alone, these two.
    """
    sources = {
        group.name: [s for s in config.data.sources if ratio_for(group.sampling_ratio, s.name) > 0]
        for group in config.objectives
    }
    of_source = [group for group, own in sources.items() if name in [source.name for source in own]]
    asked = name if name in sources else of_source[0] if len(of_source) == 1 else None
    if asked is None:
        there = dict.fromkeys([*sources, *(source.name for own in sources.values() for source in own)])
        raise unknown_key("task", name, there)
    group = next(group for group in config.objectives if group.name == asked)
    source = next((source for source in sources[asked] if source.name == name), sources[asked][0])
    return {name_of(listed): objectives[name_of(listed)] for listed in group.objectives}, source


def load(
    path: str | Path,
    device: str = "cpu",
    group: str | None = None,
    extractor: str | Path | Sequence[str | Path] = (),
) -> TrainedModel:
    """Load a run: its folder (the latest weights) or one of its weight files, e.g. `runs/x/best.safetensors`.

    group: of a run that was trained on several tasks, the name of the one to ask, or of one of its sources.
    extractor: the file of weights that regions of pictures are made with, or the files, the same as for the run's data.

    Raises:
        ConfigError: there is no run, the device is not there, or an extractor is named for a model that sees pixels.
        FileNotFoundError, ValueError: no weights, or they don't fit.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={device}: PyTorch finds no GPU here; take cpu")
    weights = weights_file(Path(path))
    folder = RunFolder(weights.parent)
    config = folder.read_config([])
    facts, tokenizer = folder.read_facts(), folder.tokenizer(config)
    with torch.random.fork_rng(devices=[]):  # building draws weights that are then replaced
        model, objectives, _ = build_run(config, tokenizer, facts)
    files = [Path(extractor)] if isinstance(extractor, str | Path) else [Path(file) for file in extractor]
    if files and pixel_size(config.model) is not None:
        raise ConfigError(
            "extractor: this run's model sees pixels, and no regions are made for it; leave its weights out"
        )
    trained = TrainedModel(model, objectives, tokenizer, config, facts, group, files)
    load_strictly(trained, read_weights(weights), str(weights))
    return trained.eval().to(device)
