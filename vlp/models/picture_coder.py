"""A coder of pictures as a model to be trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Generator, nn

from vlp.contracts import Cost
from vlp.interfaces import Batch, Images, SquareSize
from vlp.needs import Offers
from vlp.nn.pictures.squares import require_squares, squares_of
from vlp.picture_contracts import Reconstructed


@dataclass(frozen=True)
class PicturesPlan:
    """A planned batch of pictures: nothing of it has to be known. `places`: nothing either."""

    places: None = None


@dataclass(frozen=True)
class PicturesPlanner:
    """The `plan` of a `PictureCoder`. `side`: of the pictures, in pixels."""

    side: int

    def __call__(self, batch: Batch, generator: Generator | None = None) -> PicturesPlan:
        """Plan a batch.

        Raises:
            ValueError: its pictures are not squares of that side, or there are none.
        """
        require_squares(batch.images, self.side)
        return PicturesPlan()


class PictureCoder(nn.Module):
    """Reproduces the pictures of batches without text.

    Sources: DALL-E (arXiv 2102.12092), CogView (arXiv 2105.13290).

    Args:
        pictures: the coder (`vlp.picture_contracts.PictureCodes`).
        max_tokens: `{}`: no segment of texts is read.

    Raises:
        ValueError: the coder has nothing to train, or `max_tokens` has a segment.
    """

    offers = Offers("reconstructed")
    parameters_begin = r"^model\.pictures\."  # in a run's weights
    picture_sizes = SquareSize  # how pictures are scaled
    words = 0

    def __init__(self, pictures: Any, max_tokens: dict[str, int]):
        super().__init__()
        if max_tokens:
            raise ValueError("max_tokens must be {}: a coder of pictures reads no text")
        if not any(True for _ in pictures.parameters()):
            raise ValueError(
                "a coder of this type is not trained, but made from pictures when another model's run begins"
            )
        self.pictures = pictures

    @property
    def plan(self) -> PicturesPlanner:
        """See `vlp.contracts.AnyModel`."""
        return PicturesPlanner(self.pictures.size.size)

    def see(self, images: Images) -> Images:
        """The images as they are: the coder sees their pixels."""
        return images

    def cost(self, batch: Batch) -> Cost:
        """The codes of the pictures; what convolutions of any kind take is not known."""
        rows, columns = self.pictures.grid
        return Cost(len(batch.images.ids) * rows * columns, things="codes")

    def layer_order(self) -> list[list[str]]:
        """See `vlp.contracts.AnyModel`.

        Raises:
            ValueError: always, for a coder has no order of layers from one end to the other.
        """
        raise ValueError("a coder of pictures has no layers with rates of their own; leave optim.layer_decay out")

    def forward(self, batch: Batch, planned: PicturesPlan | None = None) -> Reconstructed:
        """Reproduce the pictures of a batch.

        Raises:
            ValueError: see `PicturesPlanner`.
        """
        like = next(self.pictures.parameters())
        reconstructed: Reconstructed = self.pictures(
            squares_of(batch.images, self.pictures.size.size, like), batch.step
        )
        return reconstructed
