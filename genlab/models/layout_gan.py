"""Text to image by way of boxes and a class map: three stages, each trained on the true output of the one before."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.engine.mismatch import mismatched
from genlab.fields.label import one_hot
from genlab.losses.adversarial import AdversarialLoss
from genlab.losses.matching import matching_loss
from genlab.models.base import GenerativeModel, inference
from genlab.networks.conditions import tiled
from genlab.networks.layout import BoxNetwork, filled_boxes, layout_of, masks_of


class LayoutGAN(GenerativeModel):
    """Hierarchical text-to-image synthesis. Hong, Yang, Choi & Lee (2018), arXiv:1801.05091.

    Captions give boxes (a sequence of labels, places and sizes), boxes give masks and so a class map, and the map and
    the caption give a picture. No gradient runs between the stages, which are trained side by side, on true boxes and
    maps; samples go through all three, from the first of which nothing is given. Departures: pixels take the place of
    VGG's features in both reconstruction terms, and pairs with another caption are judged as in GAN-CLS.
    """

    tricks_taken = (*GenerativeModel.tricks_taken, "instance_noise", "augment")
    tells = ("reader", "painter", "discriminator")
    ema_modules = ("reader", "boxes", "masks", "painter")

    def __init__(
        self,
        reader: nn.Module,
        boxes: BoxNetwork,
        masks: nn.Module,
        instance_discriminator: nn.Module,
        global_discriminator: nn.Module,
        painter: nn.Module,
        discriminator: nn.Module,
        loss: AdversarialLoss,
        latent_dim: int,
        mask_weight: float,
        recon_weight: float,
        temperature: float = 0.4,
        columns: tuple[str, str] = ("boxes", "layout"),
    ) -> None:
        """Joins the networks.

        Args:
            reader: Maps captions to states, the first of `boxes`.
            boxes: A `BoxNetwork`, moved with the reader.
            masks: Maps latents [N, latent_dim] and boxes [N, K, 5] to masks [N, K, H, W].
            instance_discriminator: Judges a mask with its box's map, [N K, 1 + L, H, W].
            global_discriminator: Judges the union of all masks with all boxes' maps, [N, 1 + L, H, W].
            painter: Maps class maps and latents at each pixel, told captions, to pictures.
            discriminator: Judges pictures with class maps, told captions.
            latent_dim: Width of the latents of masks and of pictures each.
            mask_weight: Of the mean distance of masks from the true ones.
            recon_weight: Of the mean distance of pixels from the true ones.
            temperature: Of boxes that are drawn.
            columns: The columns of boxes and of class maps; class c of boxes is class c + 1 of maps.
        """
        super().__init__()
        self.reader, self.boxes, self.masks, self.painter = reader, boxes, masks, painter
        self.instance_discriminator, self.global_discriminator = instance_discriminator, global_discriminator
        self.discriminator, self.loss, self.latent_dim, self.temperature = discriminator, loss, latent_dim, temperature
        self.mask_weight, self.recon_weight, self.classes = mask_weight, recon_weight, boxes.classes
        self.needs = self.fills = tuple(columns)
        self.add_player("boxes", [reader, boxes], "b_optimizer")
        self.add_player("mask_discriminator", [instance_discriminator, global_discriminator], "md_optimizer")
        self.add_player("masks", masks, "m_optimizer")
        self.add_player("discriminator", discriminator, "d_optimizer")
        self.add_player("painter", painter, "g_optimizer")

    # --- The stages ---------------------------------------------------------------------------------------------------

    def draw_boxes(self, told: Batch, rng: torch.Generator | None = None) -> Tensor:
        """Boxes [N, K, 5] of captions."""
        n, k = len(told), self.spec.fields[self.fills[0]].fixed_shape[0]
        u, eps = self.rand(n, k, 3, rng=rng), self.randn(n, k, 4, rng=rng)
        return self.boxes.draw(self.reader(told), u, eps, self.temperature)

    def draw_layout(self, boxes: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Class maps [N, H, W] of boxes."""
        return layout_of(self.masks(self.noise(len(boxes), rng), boxes), boxes)

    def paint(self, layout: Tensor, told: Batch, rng: torch.Generator | None = None) -> Tensor:
        """Pictures [N, C, H, W] of class maps and captions."""
        z = self.noise(len(layout), rng)
        return self.painter(torch.cat([self.class_maps(layout, z), tiled(z, layout.shape[1:])], dim=1), told)

    def class_maps(self, layout: Tensor, like: Tensor) -> Tensor:
        """Class maps [N, H, W] with a channel for each class, the background included."""
        return one_hot(layout, self.classes + 1, dim=1).to(like.dtype)

    @inference
    def stages(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Batch:
        """Boxes and class map of each of n samples, and the samples x; those that are given stay as they are."""
        (told,) = self.told(given)
        boxes, layout = self.fills
        made = dict(given.columns) if given is not None else {}
        if layout not in made:
            if boxes not in made:
                made[boxes] = self.draw_boxes(told, rng)
            made[layout] = self.draw_layout(Batch(made).tensor(boxes), rng)
        return Batch({**made, "x": self.paint(Batch(made).tensor(layout), told, rng)})

    @inference
    def sample(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Draws pictures [n, ...] of captions; of boxes or class maps beside them, if there are."""
        return self.stages(n, given, rng).x

    # --- Training -----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One update of each player, by stages."""
        told, (boxes, layout) = self.told(batch)[0], (batch.tensor(name) for name in self.fills)
        self.learn_boxes(told, boxes)
        self.learn_masks(boxes, layout)
        self.learn_pictures(batch, told, layout)

    def learn_boxes(self, told: Batch, boxes: Tensor) -> None:
        """Eq. 5: minimise -(log p(labels) + log p(places, sizes | labels)) / number of boxes."""
        with self.turn("boxes") as player:
            labels, places = self.boxes.nats(self.reader(told), boxes)
            count = (boxes[:, :, 0] >= 0).sum(dim=1).clamp_min(1)
            b_loss = ((labels + places) / count).mean()
            player.minimise(b_loss)
        self.record(b_loss=b_loss, nats_label=labels.mean(), nats_box=places.mean())

    def mask_logits(self, masks: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of each mask [N, K, H, W] with its box, [N K], 0 where there is no box; and of their union, [N]."""
        filled = filled_boxes(boxes, self.classes, *masks.shape[2:]).to(masks.dtype)
        each = torch.cat([masks.unsqueeze(2), filled], dim=2).flatten(0, 1)
        union = torch.cat([masks.amax(dim=1, keepdim=True), filled.amax(dim=1)], dim=1)
        there = (boxes[:, :, 0] >= 0).flatten()
        return torch.where(there, self.instance_discriminator(each), 0), self.global_discriminator(union)

    def learn_masks(self, boxes: Tensor, layout: Tensor) -> None:
        """Eq. 8 to 11: both discriminators of masks, then their generator."""
        true = masks_of(layout, boxes)
        with self.turn("mask_discriminator") as player:
            with torch.no_grad():
                fake = self.masks(self.noise(len(boxes)), boxes)
            real, drawn = self.mask_logits(true.to(fake.dtype), boxes), self.mask_logits(fake, boxes)
            each, union = (self.loss.discriminator(*logits) for logits in zip(real, drawn, strict=True))
            md_loss = each + union
            player.minimise(md_loss)

        with self.turn("masks") as player:
            fake = self.masks(self.noise(len(boxes)), boxes)
            each, union = (self.loss.generator(logits) for logits in self.mask_logits(fake, boxes))
            fooled = each + union
            mask_error = (fake - true).abs().mean()
            player.minimise(fooled + self.mask_weight * mask_error)
        self.record(md_loss=md_loss, m_loss=fooled, mask_error=mask_error)

    def learn_pictures(self, batch: Batch, told: Batch, layout: Tensor) -> None:
        """Eq. 13, with the pairs of GAN-CLS: the discriminator of pictures, then the painter."""
        x_real, kinds = batch.x, self.class_maps(layout, batch.x)
        wrong, found = mismatched(told, self.given, self.gathered, self.rand)

        def judged(x: Tensor, conditions: Batch) -> Tensor:
            return self.discriminator(torch.cat([x, kinds], dim=1), conditions)

        with self.turn("discriminator") as discriminator:
            with torch.no_grad():
                x_fake = self.paint(layout, told)
            logits_real, logits_fake = judged(x_real, told), judged(x_fake, told)
            logits_wrong = torch.where(found, judged(x_real, wrong), logits_fake)
            d_loss = matching_loss(self.loss, logits_real, logits_wrong, logits_fake)
            discriminator.minimise(d_loss)

        with self.turn("painter") as painter:
            x_fake = self.paint(layout, told)
            g_loss, recon = self.loss.generator(judged(x_fake, told)), (x_fake - x_real).abs().mean()
            painter.minimise(g_loss + self.recon_weight * recon)
        self.record(d_loss=d_loss, g_loss=g_loss, recon=recon, logits_wrong=logits_wrong.mean())
        self.record_logits(logits_real, logits_fake)
