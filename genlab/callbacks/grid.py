"""Samples while the model learns, always from the same latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger

from genlab.looks.images import image_grid, save_gif, save_png
from genlab.looks.pictures import beside, sample_picture, some_real
from genlab.looks.sheets import latent_scatter
from genlab.models.base import GenerativeModel
from genlab.sampling.latents import go_through
from genlab.seeding import preserved_random_states

ROWS = 10  # of a picture of classes
POINTS = 2500  # of two-dimensional data, where a picture of 64 says nothing


class SampleGrid(Callback):
    """Grids of samples (and reconstructions) as PNG in `grids/` and in TensorBoard; the newest is `samples.png` too.

    Of a model that draws step by step, `samples.gif` shows how; of one whose latents have a one-hot part,
    `categories.png` has a column for each class and a row for each draw of the rest (or for each such part); of one
    whose latents lie in the plane, `latents.png` shows the codes of validation samples, coloured by class.
    """

    def __init__(self, every_n_steps: int = 500, num_samples: int = 64, seed: int = 0) -> None:
        """Sets what is drawn.

        Args:
            every_n_steps: Iterations between pictures; there is one at the end as well.
            num_samples: Images in a grid.
            seed: Of the latents, which are the same in every picture.
        """
        self.every_n_steps, self.num_samples, self.seed = every_n_steps, num_samples, seed

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Draws when due, on the first process only; the random streams of training are left as they were."""
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
            n = self.num_samples if spec.kind == "image" else POINTS
            x = model.sample(n, rng=torch.Generator().manual_seed(self.seed))
            pictures["samples"] = sample_picture(spec, x, some_real(data, 10_000) if spec.kind != "image" else None)
        if model.can("reconstruct") and spec.kind == "image":
            x = some_real(data, min(self.num_samples, 32)).to(model.device)
            pictures["reconstructions"] = sample_picture(spec, beside(x, model.reconstruct(x)))
        if model.one_hot_latents and model.can("decode") and spec.kind == "image":
            z = model.noise(ROWS, torch.Generator().manual_seed(self.seed))
            walks = go_through(z, model.one_hot_latents[:ROWS])
            x = model.decode(walks.flatten(0, 1).to(model.device))
            pictures["categories"] = image_grid(spec.render(x), nrow=walks.shape[1])
        if model.can("encode") and getattr(model, "latent_dim", None) == 2:
            codes = latent_scatter(model, data, POINTS)
            pictures |= {} if codes is None else {"latents": codes}
        if model.can("frames") and spec.kind == "image":
            steps = model.frames(self.num_samples, rng=torch.Generator().manual_seed(self.seed))
            save_gif(folder / "samples.gif", [sample_picture(spec, x) for x in steps])
        for name, picture in pictures.items():
            save_png(folder / "grids" / f"{name}_{step:07d}.png", picture)
            save_png(folder / f"{name}.png", picture)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(name, picture, step, dataformats="HWC")
