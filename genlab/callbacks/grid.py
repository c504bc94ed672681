"""Samples during training, always from the same latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger

from genlab.batch import Batch
from genlab.fields.drawing import image_grid, save_gif, save_png
from genlab.looks.pictures import beside, some_real
from genlab.looks.sheets import latent_scatter, told_sheet
from genlab.models.base import GenerativeModel
from genlab.sampling.latents import go_through
from genlab.seeding import preserved_random_states
from genlab.telling import telling

ROWS = 10  # rows of `categories.png` at most
POINTS = 2500  # samples of point data, for which 64 are too few


class SampleGrid(Callback):
    """Writes grids of samples and reconstructions as PNG to `grids/` and TensorBoard; the newest also as `samples.png`.

    Some models get more: `samples.gif` for sampling step by step; `categories.png` for latents with a one-hot part,
    with a column per class and a row per draw of the rest (or per one-hot part); `latents.png` for two-dimensional
    latents, with the codes of validation samples, coloured by class.
    """

    def __init__(self, every_n_steps: int = 500, num_samples: int = 64, seed: int = 0) -> None:
        """Sets what is drawn.

        Args:
            every_n_steps: Iterations between pictures; there is one at the end as well.
            num_samples: Images in a grid.
            seed: Seed of the latents, which are the same in every picture.
        """
        self.every_n_steps, self.num_samples, self.seed = every_n_steps, num_samples, seed

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Draws when due, on the first process only; the random streams of training do not change."""
        step = trainer.global_step
        due = step % self.every_n_steps == 0 or step == trainer.max_steps or trainer.should_stop
        if due and trainer.is_global_zero and isinstance(pl_module, GenerativeModel):
            with preserved_random_states():
                self.draw(trainer, pl_module)

    def draw(self, trainer: pl.Trainer, model: GenerativeModel) -> None:
        """Writes the pictures of this iteration."""
        folder, step, spec = Path(trainer.default_root_dir), trainer.global_step, model.spec
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        pictures = {}
        if model.can("sample"):
            given = shown_conditions(model, data, self.num_samples, self.seed)
            n = len(given) if given is not None else self.num_samples if spec.x.pictorial else POINTS
            x = model.sample(n, given=given, rng=torch.Generator().manual_seed(self.seed))
            if spec.x.pictorial:
                pictures["samples"] = told_sheet(spec, x, given)
            else:
                pictures["samples"] = spec.x.sheet(x, some_real(data, 10_000))
        if model.can("reconstruct") and spec.x.pictorial:
            n = min(self.num_samples, 32)
            batch = next(iter(data.batches("val", batch_size=n, limit=n))).to(model.device)
            pictures["reconstructions"] = spec.x.sheet(beside(batch.x, telling(model, batch).reconstruct(batch.x)))
        if model.one_hot_latents and model.can("decode") and spec.x.pictorial:
            z = model.noise(ROWS, torch.Generator().manual_seed(self.seed))
            walks = go_through(z, model.one_hot_latents[:ROWS])
            given = shown_conditions(model, data, walks.shape[0] * walks.shape[1], self.seed)
            x = telling(model, given).decode(walks.flatten(0, 1).to(model.device))
            pictures["categories"] = image_grid(spec.render(x), nrow=walks.shape[1])
        if model.can("encode") and getattr(model, "latent_dim", None) == 2:
            codes = latent_scatter(model, data, POINTS)
            pictures |= {} if codes is None else {"latents": codes}
        if model.can("frames") and spec.x.pictorial:
            told = telling(model, shown_conditions(model, data, self.num_samples, self.seed))
            steps = told.frames(self.num_samples, rng=torch.Generator().manual_seed(self.seed))
            save_gif(folder / "samples.gif", [spec.x.sheet(x) for x in steps])
        for name, picture in pictures.items():
            save_png(folder / "grids" / f"{name}_{step:07d}.png", picture)
            save_png(folder / f"{name}.png", picture)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(name, picture, step, dataformats="HWC")


def shown_conditions(model: GenerativeModel, data: Any, n: int, seed: int) -> Batch | None:
    """Conditions for about n samples: all classes in turn for a model that is told no more, else validation rows.

    Args:
        model: Its `given` names the columns.
        data: The data set.
        n: Number of samples wanted.
        seed: Seed of the choice of rows.
    """
    if not model.given:
        return None
    first = model.spec.fields[model.given[0]].each(n) if len(model.given) == 1 else None
    if first is not None:
        return Batch({model.given[0]: first}).to(model.device)
    rows: Batch = data.given_rows("val", model.given, n, torch.Generator().manual_seed(seed))
    return rows.to(model.device)
