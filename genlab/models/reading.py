"""A network that reads a column from samples: no generative model, but a first stage whose features others compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.models.base import GenerativeModel, inference
from genlab.networks.classes import ClassLogits


class Reading(GenerativeModel):
    """A network that is trained to read a column, such as the class, from samples.

    Later stages compare samples by the outputs of its layers, in place of a network that was trained on other data.
    """

    ema_modules = ("network",)
    labelled_share = 0.5

    def __init__(self, network: ClassLogits, column: str = "y") -> None:
        """Takes the network.

        Args:
            network: Maps samples [N, ...] to as many numbers as the column's readout has, [N, M].
            column: The column, whose field says what is read and minimised (`genlab.fields.readout`).
        """
        super().__init__()
        self.network, self.column, self.needs = network, column, (column,)
        self.add_player("network", network, "optimizer")

    def initialise(self, batches: Iterator[Batch]) -> None:
        """Checks that the column can be read.

        Raises:
            UserError: If it cannot.
        """
        if self.spec.fields[self.column].readout((1, 1)) is None:
            kind = self.spec.fields[self.column].kind
            raise UserError(
                f"No network reads the column {self.column} of kind {kind} from samples. Try another column."
            )

    @inference
    def classify(self, x: Tensor) -> Tensor:
        """Logits [N, K] of classes for samples [N, ...]."""
        return self.network(x)

    def layers(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """The raw outputs [N, ...] of some layers, 1 the first, -1 the last before the head, with their graph."""
        return self.network.outputs(x, layers)

    def check_layer(self, layer: int) -> None:
        """Raises UserError if there is no such layer."""
        self.network.check_layer(layer)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Minimise the loss of the column's readout; that of a label is the cross-entropy."""
        readout = self.spec.fields[self.column].readout((1, 1))
        assert readout is not None, "checked at the start"
        with self.turn("network") as network:
            loss = readout.loss(self.network(batch.x), readout.target(batch[self.column]))
            network.minimise(loss)
        self.record(loss=loss)
