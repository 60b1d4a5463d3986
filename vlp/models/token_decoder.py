"""Text and the codes of an image as one sequence, read from left to right."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import cycle, islice
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.contracts import Cost, Start
from vlp.interfaces import NONE, Batch, Images, SquareSize
from vlp.needs import Offers
from vlp.nn.cost import transformer_cost
from vlp.nn.norms import divided_by_largest
from vlp.nn.patterns import PATTERNS, Windows, behind_text
from vlp.nn.rotary import rotary_angles
from vlp.nn.token_block import Around, BlockShape, Read, Shifting, TokenBlock, Whole, through
from vlp.nn.token_stream import Part, Template, TokenPlan, TokenPlanner
from vlp.nn.token_writer import TokenWriter
from vlp.nn.transformer import initialise
from vlp.picture_contracts import PictureCodes
from vlp.token_contracts import Decoded

GRADIENT_SHARE = 0.1  # of embeddings, where `stable`


class TokenDecoder(nn.Module):
    """A causal transformer over captions and codes, which writes either: DALL-E (Ramesh et al. 2021) and its copy
    DALLE-pytorch, CogView (Ding et al. 2021).

    Args:
        pictures: the frozen coder of pictures (`vlp.picture_contracts.PictureCodes`); it isn't trained.
        template: the order of a sequence, as [START, caption, codes]; see `vlp.nn.token_stream.Template`, as for
            `special`, `padding` and `vocabulary`.
        vocab_size: rows of the vocabulary of texts, with those of `commands`.
        commands: ids of command tokens that weights were trained with, all behind the words and below `vocab_size`;
            other commands have ids as the template says.
        max_tokens: of the segment `caption`.
        hidden_size, layers: H, and how many blocks there are.
        shape: what a block is like.
        initial_std: standard deviation of random weights; of projections back to the rows, over sqrt(2 layers).
        positions: `rotary`, of queries, keys and values; `axial`: a vector for each place of text, and for each row and
            each column of the codes; `learned`: a vector for each place.
        patterns: of attention, by name (`vlp.nn.patterns.PATTERNS`), from the first layer on and over again.
        windows: CogView's sparse attention, in training. Evaluated and written with is full attention.
        layer_scale: what blocks add is scaled: by 0.1 at first, from the 19th layer on by 1e-5, from the 25th by 1e-6.
        reversible: two streams; see `vlp.nn.token_block.through`.
        stable: a tenth of the gradient goes to the embeddings, and states are divided by their largest number before
            the last norm (DALLE-pytorch).
        tied: the head's weight is the table of tokens.
        head_bias: the head has a bias.
        weights: the run of a coder, a folder or a file, whose weights the coder of pictures begins with.

    Raises:
        ValueError: parts that don't fit one another.
    """

    parameters_begin = r"^model\.layers\."  # in a run's weights
    picture_sizes = SquareSize  # how pictures are scaled

    def __init__(
        self,
        pictures: nn.Module,
        template: list[str],
        special: dict[str, int],
        vocab_size: int,
        max_tokens: dict[str, int],
        hidden_size: int,
        layers: int,
        shape: BlockShape,
        initial_std: float,
        padding: Literal["each", "end"],
        vocabulary: Literal["apart", "joint"],
        positions: Literal["rotary", "axial", "learned"],
        patterns: list[str] | None = None,
        windows: Windows | None = None,
        layer_scale: bool = False,
        reversible: bool = False,
        stable: bool = False,
        tied: bool = False,
        head_bias: bool = True,
        weights: str | None = None,
        commands: dict[str, int] | None = None,
    ):
        super().__init__()
        coder = cast(PictureCodes, pictures)
        height, width = coder.grid
        if list(max_tokens) != ["caption"]:
            raise ValueError("max_tokens must have the segment caption and no other: a token decoder has one text")
        most, cells = max_tokens["caption"], height * width
        commands = commands or {}
        outside = [name for name, number in commands.items() if not 0 < number < vocab_size]
        if outside:
            raise ValueError(f"commands: the id of {outside[0]} must be above 0 and below vocab_size, {vocab_size}")
        self.words = min(commands.values(), default=vocab_size)  # rows of the vocabulary of texts
        special = {**special, **commands}
        self.template = Template(tuple(template), most, coder.codes, cells, vocab_size, special, padding, vocabulary)
        self.patterns = list(islice(cycle(patterns or ["full"]), layers))
        unknown = sorted(set(self.patterns) - PATTERNS.keys())
        if unknown:
            raise ValueError(f"patterns has {unknown[0]}; choose from {', '.join(PATTERNS)}")
        text, length, everywhere = self.template.text_before, self.template.length, set(self.patterns) == {"full"}
        if text is None and (positions != "learned" or shape.token_shift or not everywhere):
            raise ValueError(
                "rotary and axial positions, token_shift and patterns need codes that stand at the same places in every"
                " sequence: end the template with codes, and set padding=each"
            )
        if layers < 1:
            raise ValueError(f"layers is {layers}, but must be at least 1")
        if windows is not None and not everywhere:
            raise ValueError("windows and patterns can't be had both")
        self.hidden_size, self.shape, self.windows = hidden_size, shape, windows
        self.reversible, self.stable = reversible, stable
        self.offers = Offers("decoded", writes=frozenset({"caption" if self.template.text_last else "codes"}))
        self.shifting = Shifting(text, width) if shape.token_shift and text is not None else None
        rows = self.template.text_rows + coder.codes
        self.tokens = nn.Embedding(rows, hidden_size)
        scales = [(0.1 if n < 18 else 1e-5 if n < 24 else 1e-6) if layer_scale else None for n in range(layers)]
        blocks = [TokenBlock(hidden_size, shape, scale) for scale in scales]
        self.layers = nn.ModuleList(blocks)
        self.norm = shape.make_norm(hidden_size)
        self.head = None if tied else nn.Linear(hidden_size, rows, bias=False)
        self.head_bias = nn.Parameter(torch.zeros(rows)) if head_bias else None
        initialise(self, initial_std)
        for block in blocks:
            for part in (block.out, block.mlp_out):
                nn.init.normal_(part.weight, std=initial_std / math.sqrt(2 * layers))
        self.dropout = nn.Dropout(shape.dropout)

        def table(*size: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*size, hidden_size) * initial_std)

        self.positions = table(length) if positions == "learned" else None
        self.text_positions = table(text or 0) if positions == "axial" else None
        self.row_positions = table(1, height, 1) if positions == "axial" else None
        self.column_positions = table(1, 1, width) if positions == "axial" else None
        angles = rotary_angles(text or 0, coder.grid, shape.head_size) if positions == "rotary" else None
        self.register_buffer("angles", angles, persistent=False)
        for name in sorted(set(self.patterns) - {"full"}):
            seen = behind_text(text or 0, PATTERNS[name](coder.grid))
            self.register_buffer(f"mask_{name}", seen, persistent=False)
        self.weights = weights
        self.pictures = pictures.requires_grad_(False)
        self.pictures.eval()

    angles: Tensor | None

    def train(self, mode: bool = True) -> TokenDecoder:
        """As any module, but the coder of pictures stays in evaluation mode."""
        super().train(mode)
        self.pictures.eval()
        return self

    @property
    def plan(self) -> TokenPlanner:
        """See `vlp.contracts.AnyModel`."""
        return TokenPlanner(self.template, len(self.layers), self.windows)

    def start_weights(self) -> Start | None:
        """The coder's part of the weights of its run; see `vlp.contracts.Start`."""
        return None if self.weights is None else Start(self.pictures, self.weights, frozenset(), "model.pictures.")

    def tied(self, name: str) -> Tensor:
        """The table `word_embeddings` [ids of texts and codes, H].

        Raises:
            KeyError: another name.
        """
        if name != "word_embeddings":
            raise KeyError(name)
        return self.tokens.weight

    def see(self, images: Images) -> Images:
        """The images with codes; those that have none are coded."""
        if images.codes is not None:
            return images
        with torch.no_grad():
            return replace(images, codes=cast(PictureCodes, self.pictures).encode(images))

    def cost(self, batch: Batch) -> Cost:
        """See `vlp.nn.cost.transformer_cost`; of the blocks and the head, for what coding costs is not known."""
        rows, mlp = len(batch.pairs) * (self.template.length - 1), self.shape.mlp_size
        learned = nn.ModuleList([*self.layers, self.tokens if self.head is None else self.head])
        nothing = torch.zeros(0)
        cost = transformer_cost(learned, rows, len(self.layers), self.hidden_size, mlp, nothing)
        return replace(cost, things="words and codes")

    def layer_order(self) -> list[list[str]]:
        """The tables, then the blocks; see `vlp.contracts.AnyModel`."""
        tables = ["tokens", "positions", "text_positions", "row_positions", "column_positions"]
        return [tables, *([f"layers.{n}"] for n in range(len(self.layers)))]

    def mask(self, layer: int) -> Tensor | None:
        """Which places each place sees in a layer, bool [L, L]; None: all before it."""
        name = self.patterns[layer]
        return None if name == "full" else cast(Tensor, getattr(self, f"mask_{name}"))

    def whole(self, layer: int, length: int, read: Read | None = None, bias: Tensor | None = None) -> Whole:
        """What rows of the first so many places are told in a layer. read: where keys and values are kept. bias: float,
        which is added to the fits in the place of the layer's pattern.
        """
        mask = self.mask(layer) if bias is None else bias
        angles = None if self.angles is None else self.angles[:length]
        return Whole(None if mask is None else mask[..., :length, :length], angles, self.shifting, read)

    def embed(self, ids: Tensor, place: Tensor) -> Tensor:
        """Rows [P, S, H] of ids int64 [P, S] at places int64 [S] or [P, S]."""
        rows = self.tokens(ids)
        table: Tensor | None = self.positions
        if self.text_positions is not None:
            assert self.row_positions is not None
            assert self.column_positions is not None
            cells = (self.row_positions + self.column_positions).flatten(0, 2)
            table = torch.cat([self.text_positions, cells])
        if table is not None:
            rows = rows + F.embedding(place, table)
        if self.stable:
            rows = rows * GRADIENT_SHARE + rows.detach() * (1 - GRADIENT_SHARE)
        return self.dropout(rows)

    def states(self, rows: Tensor, around: list[Around]) -> Tensor:
        """States [P, S, H] of rows, each layer being told what is around."""
        rows = through(list(self.layers), rows, around, self.reversible)  # type: ignore[arg-type]
        return self.norm(divided_by_largest(rows) if self.stable else rows)

    def read(self, ids: Tensor, biases: list[Tensor] | None = None) -> Tensor:
        """States [P, S, H] of ids int64 [P, S], from the beginning of sequences on.

        biases: of each layer, float [S, S] or [P, 1, S, S], in the place of its pattern; None: the patterns.
        """
        count = ids.shape[1]
        around: list[Around] = [
            self.whole(n, count, bias=None if biases is None else biases[n]) for n in range(len(self.layers))
        ]
        return self.states(self.embed(ids, torch.arange(count, device=ids.device)), around)

    def forward(self, batch: Batch, planned: TokenPlan | None = None) -> Decoded:
        """Read every pair.

        Raises:
            ValueError: see `TokenPlanner`.
        """
        if planned is None:
            planned = self.plan(batch, torch.default_generator if self.training else None)
        ids = self.filled(planned.ids, planned.codes_at, self.codes_of(batch, planned.image))
        inputs, targets = ids[:, :-1], ids[:, 1:]
        biases = None
        if planned.pivots is not None:
            assert self.windows is not None
            biases = [self.windows.bias(own, inputs.shape[1]) for own in planned.pivots]
        states = self.read(inputs, biases)
        first = torch.arange(len(ids), device=ids.device)[:, None] * inputs.shape[1]

        def of_part(where: Tensor, part: Part) -> tuple[Tensor, Tensor]:
            own = states.flatten(0, 1).index_select(0, (first + where).flatten()).view(*where.shape, -1)
            return own, targets.gather(1, where) - self.first_label(part)

        text_states, text = of_part(planned.text_from, "text")
        code_states, codes = of_part(planned.codes_from, "codes")
        rows, computed = planned.rows, inputs.numel()
        return Decoded(text_states, code_states, text, codes, planned.text_weight, rows, computed)

    def codes_of(self, batch: Batch, image: Tensor) -> Tensor:
        """Codes int64 [P, n] of images int64 [P] of a batch.

        Raises:
            ValueError: they are not as many as the coder gives.
        """
        codes = self.see(batch.images).codes
        assert codes is not None
        if codes.shape[1] != self.template.cells:
            raise ValueError(
                f"images have {codes.shape[1]} codes, but the coder of this model gives {self.template.cells}; encode"
                " them with that coder"
            )
        return codes.index_select(0, image)

    def filled(self, ids: Tensor, codes_at: Tensor, codes: Tensor) -> Tensor:
        """Sequences with codes int64 [P, n] at their places."""
        return ids.scatter(1, codes_at, codes + self.template.code_offset)

    def first_label(self, part: Part) -> int:
        """The id that the first logit of a part stands for."""
        return 0 if self.template.vocabulary == "joint" else self.template.rows_of(part).start

    def logits(self, states: Tensor, part: Part) -> Tensor:
        """What states [..., H] of a part predict, float [..., V]: ids of texts, or codes; all, where those are one
        vocabulary.
        """
        whole = self.template.vocabulary == "joint"
        return self._logits(states, slice(0, len(self.tokens.weight)) if whole else self.template.rows_of(part))

    def predicted(self, states: Tensor, part: Part) -> Tensor:
        """Logits float [..., V] of the ids of a part alone."""
        return self._logits(states, self.template.rows_of(part))

    def _logits(self, states: Tensor, rows: slice) -> Tensor:
        weight = self.tokens.weight if self.head is None else self.head.weight
        return F.linear(states, weight[rows], None if self.head_bias is None else self.head_bias[rows])

    def writer(self, batch: Batch, part: Part) -> TokenWriter:
        """Begin to write the texts or the codes of pairs, whose own are not looked at; evaluation mode.

        What is written is numbered as the tokenizer numbers words, with commands and padding behind them, or as the
        coder numbers codes.

        Raises:
            ValueError: texts are written after codes, and a pair has no image.
        """
        assert not self.training
        text, image = batch.pairs[:, 0], batch.pairs[:, 1]
        ids, codes, _ = self.template.lay(batch.texts.segments["caption"], text)
        first = self.template.first_of(part, codes)
        if part == "text" and self.template.text_last:
            if bool((image == NONE).any()):
                raise ValueError("this model writes a text after the codes of its image; give an image for every pair")
            codes_at = codes.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : self.template.cells]
            ids = self.filled(ids, codes_at, self.codes_of(batch, image))
        return TokenWriter(self, ids, first, part)
