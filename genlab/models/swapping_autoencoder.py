"""The swapping autoencoder: images with the structure of one image and the texture of another."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.adversarial import AdversarialLoss
from genlab.losses.penalties import check_one_of_each_sample, gradient_norms
from genlab.models.base import GenerativeModel, inference
from genlab.networks.swapping import Encoder, Generator, PatchDiscriminator, random_crops


def swapped(x: Tensor) -> Tensor:
    """The batch [N, ...] with neighbours exchanged: 0 and 1, 2 and 3, ...; if N is odd, the last one stays."""
    even = len(x) // 2 * 2
    return torch.cat([x[:even].unflatten(0, (-1, 2)).flip(1).flatten(0, 1), x[even:]]) if even else x


class SwappingAutoencoder(GenerativeModel):
    """Swapping autoencoder. Park et al. (2020), arXiv:2007.00653, with the weights of the authors' code.

    The encoder gives a structure s, a map, and a texture t, a vector. rec = G(s, t) must equal the image. The crops of
    mix = G(s', t), with the structure s' of the neighbour in the batch, must have the texture of the image that gave t:
    D_patch compares each crop with the mean features of reference crops of that image.

    - Discriminators: loss of D on x against rec and mix (half each) + patch_weight times the loss of D_patch on further
      crops of x against crops of mix.
    - Generator (encoder and decoder): l1_weight |x - rec| (a mean over pixels) + rec_weight loss.generator(D(rec)) +
      mix_weight loss.generator(D(mix)) + patch_weight loss.generator(D_patch(mix)), without gradient to the reference.

    As in the code, the two players are trained on different batches: an iteration takes two, the first for the
    discriminators. In every `r1_every`-th iteration the discriminators take a second step, on r1_every times
    (r1_gamma / 2 |grad D|^2 + patch_r1_gamma / 4 |grad D_patch|^2) at real samples. The gradient of D_patch is in the
    crops and the reference crops.

    Departures: all images of a batch are reconstructed (in the code half of them, to save memory); crops are not
    mirrored; the networks are small (see `genlab.networks.swapping`), without StyleGAN2's noise and blur. There is no
    prior on codes: to draw samples, fit one (`sampler=gmm`). A latent is structure and texture, flat and side by side.
    """

    tricks_taken = ("historical_averaging",)
    ema_modules = ("encoder", "generator")
    batches_per_step = 2

    def __init__(
        self,
        encoder: Encoder,
        generator: Generator,
        discriminator: nn.Module,
        patch_discriminator: PatchDiscriminator,
        loss: AdversarialLoss,
        patch_size: int,
        crops: int,
        crop_scale: Sequence[float],
        l1_weight: float,
        rec_weight: float,
        mix_weight: float,
        patch_weight: float,
        r1_gamma: float,
        patch_r1_gamma: float,
        r1_every: int,
    ) -> None:
        """Joins the players.

        Args:
            encoder: Maps images [N, C, H, W] to structures [N, S, h, w] and textures [N, T], both of unit length (over
                S and T).
            generator: Maps structures and textures to images.
            patch_discriminator: D_patch, maps reference crops and crops [N, K, C, p, p] to logits [N, K].
            patch_size: p, the side that crops are resampled to.
            crops: Number of crops and of reference crops of an image.
            crop_scale: Smallest and largest side of a crop, as shares of the image's.

        Raises:
            UserError: If a number is out of its range.
            ValueError: If a discriminator normalises over the batch.
        """
        super().__init__()
        _check_scale(crop_scale)
        _check_ranges(crops, r1_every, r1_gamma, patch_r1_gamma)
        check_one_of_each_sample(discriminator)
        check_one_of_each_sample(patch_discriminator)
        self.encoder, self.generator, self.loss = encoder, generator, loss
        self.discriminator, self.patch_discriminator = discriminator, patch_discriminator
        self.patch_size, self.crops, self.crop_scale = patch_size, crops, (float(crop_scale[0]), float(crop_scale[1]))
        self.l1_weight, self.rec_weight, self.mix_weight = l1_weight, rec_weight, mix_weight
        self.patch_weight, self.r1_every = patch_weight, r1_every
        self.r1_gamma, self.patch_r1_gamma = r1_gamma, patch_r1_gamma
        self.latent_dim = math.prod(self.encoder.structure_shape) + self.encoder.texture_dim
        self.add_player("discriminators", [discriminator, patch_discriminator], "d_optimizer")
        self.add_player("generator", [encoder, generator], "g_optimizer")

    def cut(self, x: Tensor) -> Tensor:
        """Random crops [N, crops, C, p, p] of images, from the stream that all processes share."""
        return random_crops(x, self.crops, self.patch_size, self.crop_scale, self.rand)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """rec and mix of images [N, C, H, W]: G(s, t), and G(s', t) with the structure s' of the neighbour."""
        structure, texture = self.encoder(x)
        images = self.generator(torch.cat([structure, swapped(structure)]), texture.repeat(2, 1))
        rec, mix = images.chunk(2)
        return rec, mix

    def penalty(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """r1_gamma / 2 E |grad D|^2 and patch_r1_gamma / 4 E |grad D_patch|^2 at images [N, C, H, W].

        The gradient of D_patch is that of the sum of its logits over an image's crops, in crops and reference crops.
        """
        pair = torch.stack([self.cut(x), self.cut(x)], dim=1)  # [N, 2, K, C, p, p]
        image = gradient_norms(self.discriminator, x).square().mean()
        patch = gradient_norms(lambda p: self.patch_discriminator(p[:, 0], p[:, 1]).sum(dim=1), pair).square().mean()
        return 0.5 * self.r1_gamma * image, 0.25 * self.patch_r1_gamma * patch

    @inference
    def encode(self, x: Tensor) -> Tensor:
        """Structure and texture of images as one vector, [N, latent_dim]."""
        structure, texture = self.encoder(x)
        return torch.cat([structure.flatten(1), texture], dim=1)

    @inference
    def decode(self, z: Tensor) -> Tensor:
        """G of latents [N, latent_dim], after structure and texture are normalised to unit length."""
        structure, texture = z.split([self.latent_dim - self.encoder.texture_dim, self.encoder.texture_dim], dim=1)
        structure = structure.unflatten(1, self.encoder.structure_shape)
        return self.generator(nn.functional.normalize(structure, dim=1), nn.functional.normalize(texture, dim=1))

    @inference
    def reconstruct(self, x: Tensor) -> Tensor:
        """G(s, t) of images [N, C, H, W]."""
        return self.generator(*self.encoder(x))

    @inference
    def translate(self, x: Tensor, texture: Tensor | None = None) -> Tensor:
        """Images with the structure of `x` and the texture of others.

        Args:
            x: Images [N, C, H, W].
            texture: Images [N, C, H, W] that give the texture; the neighbours in `x` unless given.
        """
        return self.generator(self.encoder(x)[0], self.encoder(swapped(x) if texture is None else texture)[1])

    def objective(self, x: Tensor, rng: torch.Generator | None = None) -> dict[str, Tensor]:
        """Reconstruction errors: `l1` per pixel, `squared_error` per image, and `loss` in nats per image.

        The loss is the likelihood of the L1 error: -log p(x | s, t) with Laplace distributions of scale 1 around rec.
        """
        error = self.generator(*self.encoder(x)) - x
        loss = error.abs().flatten(1).sum(dim=1).mean() + math.log(2) * x[0].numel()
        return {"loss": loss, "l1": error.abs().mean(), "squared_error": error.square().flatten(1).sum(dim=1).mean()}

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One update of both discriminators (at times a second one, on R1), then one of encoder and generator."""
        x, x_next = batch.x.chunk(2)

        # Discriminators: minimise loss.discriminator of D (x, rec and mix) and of D_patch (crops of x, crops of mix).
        with torch.no_grad():
            rec, mix = self.both(x)
        with self.turn("discriminators") as discriminators:
            logits_real, logits_fake = self.discriminator(torch.cat([x, rec, mix])).split([len(x), 2 * len(x)])
            d_loss = self.loss.discriminator(logits_real, logits_fake)
            reference = self.patch_discriminator.reference(self.cut(x))
            patch_real = self.patch_discriminator.logits(reference, self.cut(x))
            patch_fake = self.patch_discriminator.logits(reference, self.cut(mix))
            patch_d_loss = self.loss.discriminator(patch_real.flatten(), patch_fake.flatten())
            discriminators.minimise(d_loss + self.patch_weight * patch_d_loss)
        if (self.r1_gamma or self.patch_r1_gamma) and (self.iteration + 1) % self.r1_every == 0:
            with self.turn("discriminators") as discriminators:
                image, patch = self.penalty(x)
                discriminators.minimise(self.r1_every * (image + patch))
            self.record(r1=image, patch_r1=patch)

        # Encoder and generator: minimise |x - rec| and loss.generator of D(rec), D(mix) and D_patch(crops of mix).
        with self.turn("generator") as generator:
            rec, mix = self.both(x_next)
            l1 = (rec - x_next).abs().mean()
            logits_rec, logits_mix = self.discriminator(torch.cat([rec, mix])).chunk(2)
            g_rec, g_mix = self.loss.generator(logits_rec), self.loss.generator(logits_mix)
            with torch.no_grad():
                reference = self.patch_discriminator.reference(self.cut(x_next))
            g_patch = self.loss.generator(self.patch_discriminator.logits(reference, self.cut(mix)).flatten())
            adversarial = self.rec_weight * g_rec + self.mix_weight * g_mix + self.patch_weight * g_patch
            generator.minimise(self.l1_weight * l1 + adversarial)

        self.record(d_loss=d_loss, patch_d_loss=patch_d_loss, l1=l1, g_rec=g_rec, g_mix=g_mix, g_patch=g_patch)
        self.record_logits(logits_real, logits_fake)


def _check_scale(crop_scale: Sequence[float]) -> None:
    """Checks that `crop_scale` is [smallest, largest], two shares of an image's side."""
    if len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise UserError(
            f"model.crop_scale must be [smallest, largest] in (0, 1], got {list(crop_scale)}. "
            "Try 'model.crop_scale=[0.25,0.5]'."
        )


def _check_ranges(crops: int, r1_every: int, r1_gamma: float, patch_r1_gamma: float) -> None:
    if min(crops, r1_every) < 1 or min(r1_gamma, patch_r1_gamma) < 0:
        raise UserError(
            "model.crops and r1_every must be at least 1, model.r1_gamma and patch_r1_gamma at least 0; "
            f"got {crops}, {r1_every}, {r1_gamma} and {patch_r1_gamma}."
        )
