"""How VLP writes, against numbers computed with the official implementation."""

from __future__ import annotations

import pytest
import torch
from golden import STATES, Golden, golden_cases
from test_vlp import END, Vlp, load
from torch import Tensor

from vlp.interfaces import NONE
from vlp.tasks.captioning import Captioning, CaptionWriter
from vlp.writing.filters import Filter, least_length, no_repeat
from vlp.writing.searches import frame_search, frames, greedy

CPU = torch.device("cpu")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = metafunc.config.getoption("--golden")
    paths = golden_cases(folder, "vlp", "decode")
    assert paths, f"{folder} has no file vlp/decode*.safetensors"
    metafunc.parametrize("path", paths, ids=[f"vlp/{path.stem}" for path in paths])


class RawLogits(CaptionWriter):
    """Gives logits, by which the original scores greedy writing."""

    def next(self, tokens: Tensor | None) -> Tensor:
        return self.task.word_logits(self.states.next(tokens), self.model)


def filters_of(c: dict) -> list[Filter]:
    made = [no_repeat(c["ngram_size"])] if c.get("forbid_duplicate_ngrams") else []
    return made + ([least_length(c["min_len"], c["eos_id"])] if c.get("min_len") else [])


def test_writing(path) -> None:
    golden = Golden.read(path)
    c = golden.config
    most, beams, count = c["max_tgt_length"], c["search_beam_size"], len(golden.inputs["input_ids"])
    vlp = Vlp(golden)
    vlp.model.eval()
    task = Captioning(vlp.model, c["mask_word_id"], c["eos_id"], list(range(c["vocab_size"])))
    load(golden, vlp.model, "captioning", task, "vlp")
    assert task.most_written == most
    if beams == 1:
        # the original never stops, so nothing ends a text; and the last word is kept
        texts = greedy(RawLogits(task, vlp.model, vlp.batch), count, most, NONE, CPU)
        words = torch.tensor([text.tokens for text in texts])
        assert torch.equal(words, golden.outputs["ids"][:, : most - 1])
        means = torch.tensor([text.score for text in texts])
        torch.testing.assert_close(means, golden.outputs["max_scores"].mean(1), **STATES)
        scores, last = step_by_step(RawLogits(task, vlp.model, vlp.batch), most)
        golden.check("max_scores", scores, **STATES)
        golden.check("ids", last, rtol=0, atol=0)
        golden.assert_all_read()
        return
    filters = filters_of(c)
    found = list(frames(CaptionWriter(task, vlp.model, vlp.batch), count, beams, most, END, CPU, filters))

    def in_rows(parts: list[Tensor]) -> Tensor:
        """[P, places, beams], with zeros after them as in the file."""
        rows = torch.stack(parts, 1)
        return torch.nn.functional.pad(rows, (0, 0, 0, golden.outputs["wids"].shape[1] - most))

    golden.check("wids", in_rows([frame.words for frame in found]), rtol=0, atol=0)
    golden.check("ptrs", in_rows([frame.parents for frame in found]), rtol=0, atol=0)
    golden.check("scores", in_rows([frame.scores for frame in found]), **STATES)
    writer = CaptionWriter(task, vlp.model, vlp.batch)
    best = frame_search(writer, count, beams, most, END, CPU, c["length_penalty"], filters)
    for text, row in zip(best, golden.outputs["pred_seq"].tolist(), strict=True):
        padded = text.tokens + [0] * (len(row) - len(text.tokens))
        assert padded == [0 if word == END else word for word in row]  # the original keeps the end
    golden.excuse("outputs/pred_seq", "compared above")
    golden.assert_all_read()


def step_by_step(writer: RawLogits, most: int) -> tuple[Tensor, Tensor]:
    """The largest logits and their words, [P, most]."""
    scores, words = [], []
    for _ in range(most):
        best, word = writer.next(words[-1] if words else None).max(1)
        scores.append(best)
        words.append(word)
    return torch.stack(scores, 1), torch.stack(words, 1)
