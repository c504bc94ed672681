"""Attribute2Image in two layers: a conditional VAE that draws a foreground by attributes in front of a background."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.batch import Batch
from genlab.errors import UserError
from genlab.losses.divergences import kl_standard_normal
from genlab.models.base import inference
from genlab.models.capabilities import NormalPrior
from genlab.networks.posteriors import DiagonalGaussian

NOTHING = -1.0  # colour of the foreground where there is none: black


class Layers(NamedTuple):
    """The layers of pictures, [N, C, H, W] each: x_F and x_B in [-1, 1], and logits of the gate g."""

    foreground: Tensor
    gate: Tensor
    background: Tensor

    @property
    def picture(self) -> Tensor:
        """x = (1 - g) x_F + g x_B."""
        return composite(self.foreground, self.gate.sigmoid(), self.background)


def composite(foreground: Tensor, gate: Tensor, background: Tensor) -> Tensor:
    """(1 - g) x_F + g x_B of gates in [0, 1]: the foreground where g is 0, the background where it is 1."""
    return (1 - gate) * foreground + gate * background


class DisCVAE(NormalPrior):
    """Disentangling CVAE. Yan, Yang, Sohn & Lee (2016), "Attribute2Image", arXiv:1512.00570, section 3.2.

    z_F ~ q(z_F | x_F, y) gives, with the attributes y, a foreground x_F and a gate g; z_B ~ q(z_B | x, y, z_F) gives a
    background x_B, which is not told y. The picture is (1 - g) x_F + g x_B. The authors' code has x_F + g x_B, in which
    a foreground that is black off the mask, as its own term asks, leaves no background above 0 in [-1, 1]. In that code
    the attributes join the posteriors' means alone; here mean and log-variance, as `conditioning` has it. The latent is
    z_F, then z_B. Masks are read in training alone. There is no encoder of pictures without a mask: the paper searches
    for their latents.
    """

    tells = ("foreground_encoder", "background_encoder", "foreground_decoder")
    ema_modules = ("foreground_encoder", "code_map", "background_encoder", "foreground_decoder", "background_decoder")

    def __init__(
        self,
        foreground_encoder: nn.Module,
        code_map: nn.Module,
        background_encoder: nn.Module,
        foreground_decoder: nn.Module,
        background_decoder: nn.Module,
        latent_dim: int,
        foreground_dim: int,
        background_dim: int,
        kl_weight: float = 1.0,
        gate_weight: float = 0.3,
        mask: str = "mask",
    ) -> None:
        """Joins the networks.

        Args:
            foreground_encoder: Maps x_F, told y, to mean and log-variance of z_F.
            code_map: Maps z_F to a channel [N, 1, H, W], beside which the background encoder reads the picture.
            background_encoder: Maps the picture with that channel, told y, to mean and log-variance of z_B.
            foreground_decoder: Maps z_F, told y, to x_F before its tanh and logits of the gate: [N, 2 C, H, W].
            background_decoder: Maps z_B to x_B before its tanh.
            latent_dim: Width of both latents together.
            foreground_dim: Width of z_F.
            background_dim: Width of z_B.
            gate_weight: alpha, of the cross-entropy between gate and mask.
            mask: Column of class maps [N, H, W] in training data, 0 (or unknown, -1) for the background.

        Raises:
            UserError: If the widths do not add up.
        """
        super().__init__()
        if latent_dim != foreground_dim + background_dim:
            raise UserError(
                f"A latent has {foreground_dim} + {background_dim} numbers, not {latent_dim}. Set model.foreground_dim "
                "and model.background_dim, and leave model.latent_dim out."
            )
        self.foreground_encoder, self.code_map = foreground_encoder, code_map
        self.background_encoder = background_encoder
        self.foreground_decoder, self.background_decoder = foreground_decoder, background_decoder
        self.latent_dim, self.dims = latent_dim, (foreground_dim, background_dim)
        self.kl_weight, self.gate_weight, self.mask = kl_weight, gate_weight, mask
        self.needs = (mask,)
        networks = [foreground_encoder, code_map, background_encoder, foreground_decoder, background_decoder]
        self.add_player("cvae", networks)

    def initialise(self, batches: Iterator[Batch]) -> None:
        """Checks that the masks are class maps of the pictures' size.

        Raises:
            UserError: If they are not.
        """
        batch = next(batches)
        found, wanted = batch.tensor(self.mask), batch.x[:, 0]
        if found.shape != wanted.shape or found.is_floating_point():
            raise UserError(
                f"model.mask={self.mask} must name class maps of {list(wanted.shape[1:])} pixels, 0 for the "
                f"background, and its values have the shape {list(found.shape[1:])}. data=scenes has such ones."
            )

    def layers(self, z: Tensor, *told: Batch) -> Layers:
        """The layers of latents [N, latent_dim]; the background depends on z_B alone."""
        z_f, z_b = z.split(self.dims, dim=1)
        foreground, gate = self.foreground_decoder(z_f, *told).chunk(2, dim=1)
        return Layers(foreground.tanh(), gate, self.background_decoder(z_b).tanh())

    @inference
    def sample(self, n: int, given: Batch | None = None, rng: torch.Generator | None = None) -> Tensor:
        """Pictures [n, C, H, W] of given attributes, z ~ N(0, I)."""
        return self.layers(self.noise(n, rng), *self.told(given)).picture

    @inference
    def decode(self, z: Tensor, given: Batch | None = None) -> Tensor:
        """Pictures of latents [N, latent_dim]."""
        return self.layers(z, *self.told(given)).picture

    def infer(self, x: Tensor, there: Tensor, *told: Batch) -> tuple[Tensor, Tensor]:
        """z_F ~ q(z_F | x_F, y) and z_B ~ q(z_B | x, y, z_F), joined, and the KL of both from N(0, I).

        Args:
            x: Pictures.
            there: Whether a pixel is one of the foreground, bool [N, 1, H, W].
            *told: The attributes.

        Returns:
            Latents [N, latent_dim] with their gradient, and KLs [N] in nats.
        """
        q_f = DiagonalGaussian(*self.foreground_encoder(foreground_of(x, there), *told).chunk(2, dim=1))
        z_f = q_f.rsample(self.randn(len(x), self.dims[0]))
        beside = torch.cat([x, self.code_map(z_f)], dim=1)
        q_b = DiagonalGaussian(*self.background_encoder(beside, *told).chunk(2, dim=1))
        z_b = q_b.rsample(self.randn(len(x), self.dims[1]))
        return torch.cat([z_f, z_b], dim=1), kl_standard_normal(*q_f) + kl_standard_normal(*q_b)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Minimise l(x_F, fg) + l(x, img) + KL_F + KL_B + alpha CE(g, 1 - mask), sums over a picture, l smooth L1."""
        x, told, there = batch.x, self.told(batch), (batch.tensor(self.mask) > 0).unsqueeze(1)
        with self.turn("cvae") as cvae:
            z, kl = self.infer(x, there, *told)
            terms = {**distances(self.layers(z, *told), x, there), "kl": kl.mean()}
            image = terms["foreground"] + terms["recon"] + self.gate_weight * terms["gate"]
            loss = image + self.kl_weight * terms["kl"]
            cvae.minimise(loss)
        self.record(loss=loss, **terms)


def foreground_of(x: Tensor, there: Tensor) -> Tensor:
    """Pictures [N, C, H, W] where `there`, bool [N, 1, H, W], and black elsewhere."""
    return torch.where(there, x, NOTHING)


def distances(layers: Layers, x: Tensor, there: Tensor) -> dict[str, Tensor]:
    """The three image terms, means over the batch of sums over a picture.

    Args:
        layers: Those of the model.
        x: Pictures [N, C, H, W].
        there: Whether a pixel is one of the foreground, bool [N, 1, H, W].

    Returns:
        `foreground`, smooth L1 of x_F from the foreground; `recon`, that of the composite from x; and `gate`, the
        cross-entropy between g and 1 - mask in nats.
    """
    behind = (~there).to(layers.gate.dtype).expand_as(layers.gate)
    each = {
        "foreground": F.smooth_l1_loss(layers.foreground, foreground_of(x, there), reduction="none"),
        "recon": F.smooth_l1_loss(layers.picture, x, reduction="none"),
        "gate": F.binary_cross_entropy_with_logits(layers.gate, behind, reduction="none"),
    }
    return {name: term.flatten(1).sum(dim=1).mean() for name, term in each.items()}
