"""A trained model, ready to embed and score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from vlp.checkpoints.load import load_strictly, read_weights
from vlp.config import ConfigError, RunConfig, SourceConfig, ratio_for, unknown_key
from vlp.evaluation.retrieval import score_all_pairs
from vlp.interfaces import (
    NONE,
    AnswerScores,
    Batch,
    Images,
    Model,
    Regions,
    Segment,
    Task,
    Texts,
    Tokenizer,
    map_tensors,
)
from vlp.models.dual_encoder import DualEncoder
from vlp.models.single_stream import SingleStream
from vlp.objectives.matching import Matching
from vlp.objectives.segment_matching import SegmentMatching
from vlp.run_folder import DataFacts, RunFolder, answers_of_objectives, build_run, weights_file
from vlp.tasks.answer_classification import AnswerClassification
from vlp.tasks.captioning import Captioning
from vlp.tasks.multiple_choice import MultipleChoice
from vlp.tasks.pair_ranking import PairRanking
from vlp.tasks.paired_images import PairedImages
from vlp.tasks.region_choice import RegionChoice

EMBED_BATCH = 64  # images or texts that a dual encoder embeds at a time


class TrainedModel(nn.Module):
    """Model and objectives of a run in evaluation mode, with what is needed to feed them.

    Attributes:
        model: the encoder (`vlp.interfaces.Model`; of a dual encoder `DualModel`).
        objectives: the trained objectives with their heads, by name.
        tokenizer, config, facts: the run's own.
        source: where the run's data lies; of several the first, or the first that `group` is drawn for.

    Args:
        group: the name of that of the run's groups which is asked, where several could be.

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
    ):
        super().__init__()
        self.model, self.objectives = model, objectives
        self.tokenizer, self.config, self.facts = tokenizer, config, facts
        self.group = group
        self._of_group = dict(objectives.items())
        self.source = config.data.sources[0]
        if group is not None:
            self._of_group, self.source = _objectives_of(config, objectives, group)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def matching(self) -> Matching | PairRanking | SegmentMatching:
        """The objective that scores pairs of texts and images.

        Raises:
            ConfigError: the run trained none.
        """
        for name, objective in self._of_group.items():
            if isinstance(objective, Matching | PairRanking | SegmentMatching):
                if isinstance(objective, SegmentMatching) and "caption" not in objective.shares:
                    continue
                self._check_source(name)
                return objective
        raise ConfigError(
            "this run can't score pairs: it trained neither `matching` nor `pair_ranking`, nor `segment_matching` of"
            " captions"
        )

    def task(self) -> Task:
        """The task that the run was trained on.

        Raises:
            ConfigError: it was trained on none, or on several.
        """
        kinds = AnswerClassification | MultipleChoice | PairedImages | RegionChoice
        tasks = {name: o for name, o in self._of_group.items() if isinstance(o, kinds)}
        if len(tasks) > 1:
            groups = ", ".join(group.name for group in self.config.objectives)
            raise ConfigError(f"this run trained several tasks ({', '.join(tasks)}); say which: task=GROUP of {groups}")
        if not tasks:
            what = "this run" if self.group is None else f"the group {self.group} of this run"
            raise ConfigError(
                f"{what} trained no task that answers questions; its objectives are {', '.join(self._of_group)}"
            )
        self._check_source(next(iter(tasks)))
        return next(iter(tasks.values()))

    @property
    def captioning(self) -> Captioning | None:
        """The task of writing captions, if the run was trained on it.

        Raises:
            ConfigError: on other data than is asked.
        """
        for name, objective in self._of_group.items():
            if isinstance(objective, Captioning):
                self._check_source(name)
                return objective
        return None

    def _check_source(self, name: str) -> None:
        """Refuse to ask an objective, by name, with the segments, the token of the task or the answers of a source that
        it was not trained on, as the first of several may be.
        """
        for group in self.config.objectives:
            own = [listed.get("name", listed["type"]) for listed in group.objectives]
            if name in own and not ratio_for(group.sampling_ratio, self.source.name) > 0:
                raise ConfigError(
                    f"{name} was trained on other sources than the run's first, {self.source.name}; say which group is"
                    f" asked: task={group.name} (of {', '.join(group.name for group in self.config.objectives)})"
                )

    @torch.no_grad()
    def caption_batch(self, batch: Batch, beams: int = 1, keep: int = 1) -> list[list[tuple[str, float]]]:
        """Captions of the pairs of a clean batch, whose own are not looked at: the best of each first, with its score.

        Args:
            beams, keep: see `vlp.tasks.captioning.Captioning.write`.

        Raises:
            ConfigError: the run was not trained to write captions, or its tokenizer can't put words together.
        """
        task, decode = self.captioning, getattr(self.tokenizer, "decode", None)
        if task is None:
            raise ConfigError(f"this run trained no captioning; its objectives are {', '.join(self.objectives)}")
        if decode is None:
            raise ConfigError(f"the tokenizer {self.tokenizer.path} can't make a text of tokens; WordPiece can")
        batch = replace(batch, source=self.source.name).to(self.device)
        batch = replace(batch, images=self.see(batch.images))
        written = task.write(cast(Model, self.model), batch, beams, keep=keep)
        return [[(decode(one.tokens), one.score) for one in best] for best in written]

    def caption(self, image: Regions, tags: str = "", beams: int = 1, keep: int = 1) -> list[tuple[str, float]]:
        """Captions of an image, the best first, each with the mean logarithm of its words' probabilities.

        Args:
            tags: the names of its objects, for a model that reads them.
            beams: how many beginnings of a caption are followed. keep: how many captions, of several beams, come back.
        """
        segments = {"caption": "", "tags": tags} if "tags" in self.config.model["max_tokens"] else {"caption": ""}
        texts = {name: Segment.from_tokens(self.tokenizer.encode([text])) for name, text in segments.items()}
        batch = Batch(
            texts=Texts(texts, torch.zeros(1, dtype=torch.int64)),
            images=Images.from_regions([image], [0]),
            pairs=torch.zeros(1, 2, dtype=torch.int64),
            matched=torch.ones(1, dtype=torch.bool),
        )
        return self.caption_batch(batch, beams, keep)[0]

    @torch.no_grad()
    def answer_batch(self, batch: Batch) -> Tensor:
        """How likely each answer of `answer_names` is, float32 [questions, answers], of a clean batch.

        Of `region_choice`, how likely each region of the image is, float32 [questions, most regions]; of
        `multiple_choice`, each choice, float32 [questions, choices].
        """
        task = self.task()
        batch = replace(batch, source=self.source.name).to(self.device)
        batch, _ = task.corrupt(batch, torch.Generator(self.device))
        return task.probabilities(task.logits(self.model(batch)))

    def answer(self, question: str, images: Sequence[Regions]) -> list[tuple[str, float]]:
        """All answers to a question about one image or two, the likeliest first, with how likely each is.

        Of `region_choice` they are the regions: `NUMBER: X1 Y1 X2 Y2`, corners as shares of the image.
        """
        segment = Segment.from_tokens(self.tokenizer.encode([question]))
        batch = Batch(
            texts=Texts({"question": segment}, torch.zeros(1, dtype=torch.int64)),
            images=Images.from_regions(list(images), list(range(len(images)))),
            pairs=torch.tensor([[0, *range(len(images))]]),
            matched=torch.ones(1, dtype=torch.bool),
            answer_scores=AnswerScores.from_dicts([{}]),
            target_boxes=torch.zeros(1, 4),
        )
        likely = self.answer_batch(batch)[0].cpu()
        order = likely.argsort(descending=True).tolist()
        names = self.answer_names
        if isinstance(self.task(), RegionChoice):
            boxes = enumerate(images[0].boxes.tolist())
            names = [f"{number}: {' '.join(f'{side:.3f}' for side in box)}" for number, box in boxes]
        return [(names[number], float(likely[number])) for number in order]

    @property
    def answer_names(self) -> list[str]:
        """The answers that the task chooses from; empty where none are."""
        task = self.task()
        name = next(name for name, objective in self._of_group.items() if objective is task)
        return answers_of_objectives(self.config, self.facts)[name]

    @property
    def dual(self) -> bool:
        """Whether this is a dual encoder, which embeds texts and images apart."""
        return isinstance(self.model, DualEncoder)

    def _dual_model(self) -> DualEncoder:
        if not isinstance(self.model, DualEncoder):
            raise ConfigError(
                "this model sees text and image together; only a dual encoder embeds one without the other"
            )
        return self.model

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings float32 [T, D] of length 1, by a dual encoder, on the CPU.

        Raises:
            ConfigError: the model is no dual encoder. ValueError: `texts` is one text, not several.
        """
        if isinstance(texts, str):  # it would pass as a list of letters
            raise ValueError(f"embed_texts takes a list of texts: [{texts[:40]!r}]")
        model, parts = self._dual_model(), []
        for first in range(0, len(texts), EMBED_BATCH):
            tokens = self.tokenizer.encode(list(texts[first : first + EMBED_BATCH]))
            segment = Segment.from_tokens(tokens)
            batch = Texts({"caption": segment}, torch.arange(len(tokens)))
            parts.append(model.embed_texts(map_tensors(batch, lambda tensor: tensor.to(self.device))).cpu())
        return torch.cat(parts) if parts else torch.zeros(0, model.embedding_size)

    @torch.no_grad()
    def embed_images(self, images: Sequence[Regions]) -> Tensor:
        """Embeddings float32 [I, D] of length 1, by a dual encoder, on the CPU.

        Raises:
            ConfigError: the model is no dual encoder. ValueError: an image has no pixels.
        """
        model, parts = self._dual_model(), []
        for first in range(0, len(images), EMBED_BATCH):
            chunk = images[first : first + EMBED_BATCH]
            batch = Images.from_regions(chunk, list(range(len(chunk))))
            parts.append(model.embed_images(map_tensors(batch, lambda tensor: tensor.to(self.device))).cpu())
        return torch.cat(parts) if parts else torch.zeros(0, model.embedding_size)

    @torch.no_grad()
    def embed(self, captions: Sequence[str | None], images: Sequence[Regions | None]) -> Tensor:
        """Pooled vectors float32 [n, H] of n pairs; either side of a pair may be None.

        A model that sees pixels takes `Regions.from_pixels(pixels)`, any other regions with features.

        Raises:
            ValueError: the two lists differ in length, or a pair is (None, None).
            ConfigError: the model is a dual encoder.
        """
        if self.dual:
            raise ConfigError("a dual encoder has no vector of a pair: take embed_texts and embed_images")
        if len(captions) != len(images):
            raise ValueError(f"{len(captions)} captions and {len(images)} images: embed takes pairs; score takes all")
        texts = [c for c in captions if c is not None]
        pictures = [i for i in images if i is not None]
        text_row, image_row = _number(captions), _number(images)
        nothing = Regions(torch.zeros(0, self.facts.feature_size), torch.zeros(0, 4))
        batch = Batch(
            texts=Texts({"caption": Segment.from_tokens(self.tokenizer.encode(texts))}, torch.arange(len(texts))),
            images=Images.from_regions(pictures or [nothing], list(range(max(len(pictures), 1)))),
            pairs=torch.tensor(list(zip(text_row, image_row, strict=True))).view(-1, 2),
            matched=torch.ones(len(captions), dtype=torch.bool),
            source=self.source.name,
        )
        pooled: Tensor = self.model(batch.to(self.device)).pooled["pair"]
        return pooled.float().cpu()

    def score(self, captions: Sequence[str], images: Sequence[Regions]) -> Tensor:
        """How well each caption matches each image, float32 [T, I]; for ranking, larger is better.

        Of a dual encoder, the products that its loss compares: scale times cosine, and bias.
        """
        if self.dual:
            model = self._dual_model()
            products = self.embed_texts(captions) @ self.embed_images(images).t()
            bias = 0.0 if model.logit_bias is None else float(model.logit_bias)
            return float(model.logit_scale.exp()) * products + bias
        return score_all_pairs(self.score_batch, self.tokenizer.encode(list(captions)), list(images), see=self.see)

    @torch.no_grad()
    def see(self, images: Images) -> Images:
        """The images with regions made from their pixels, on the model's device, if it sees pixels."""
        images = map_tensors(images, lambda tensor: tensor.to(self.device))
        return self.model.see(images) if isinstance(self.model, SingleStream) else images

    def score_batch(self, batch: Batch) -> Tensor:
        """Scores float32 [P] of a batch's pairs."""
        return self.matching().score(self.model(replace(batch, source=self.source.name).to(self.device)))


def _objectives_of(
    config: RunConfig, objectives: nn.ModuleDict, name: str
) -> tuple[dict[str, nn.Module], SourceConfig]:
    """The objectives of a group, and the first source that it is drawn for."""
    for group in config.objectives:
        if group.name == name:
            own = [listed.get("name", listed["type"]) for listed in group.objectives]
            sources = [s for s in config.data.sources if ratio_for(group.sampling_ratio, s.name) > 0]
            return {key: objectives[key] for key in own}, sources[0]
    raise unknown_key("task", name, (group.name for group in config.objectives))


def _number(items: Sequence[object]) -> list[int]:
    numbers, count = [], 0
    for item in items:
        numbers.append(NONE if item is None else count)
        count += item is not None
    return numbers


def load(path: str | Path, device: str = "cpu", group: str | None = None) -> TrainedModel:
    """Load a run: its folder (the latest weights) or one of its weight files, e.g. `runs/x/best.safetensors`.

    group: of a run that was trained on several tasks, the name of the one to ask.

    Raises:
        ConfigError: there is no run. FileNotFoundError, ValueError: no weights, or they don't fit.
    """
    weights = weights_file(Path(path))
    folder = RunFolder(weights.parent)
    config = folder.read_config([])
    facts, tokenizer = folder.read_facts(), folder.tokenizer(config)
    with torch.random.fork_rng(devices=[]):  # building draws weights that are then replaced
        model, objectives, _ = build_run(config, tokenizer, facts)
    trained = TrainedModel(model, objectives, tokenizer, config, facts, group)
    load_strictly(trained, read_weights(weights), str(weights))
    return trained.eval().to(device)
