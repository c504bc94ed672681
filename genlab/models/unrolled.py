"""The unrolled GAN: the generator is trained against a discriminator some updates ahead."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from genlab.batch import Batch
from genlab.engine.schedules import OptimizerFactory, SchedulerFactory
from genlab.errors import UserError
from genlab.losses.adversarial import AdversarialLoss
from genlab.losses.numerics import eager
from genlab.models.base import inference
from genlab.models.capabilities import Generating


def unroll(
    loss: Callable[[list[Tensor]], Tensor],
    parameters: list[Tensor],
    optimizer: Optimizer,
    steps: int,
    clip: float | None = None,
) -> list[Tensor]:
    """Parameters after some steps of an optimizer, differentiable in everything that the loss depends on.

    The steps start from the given parameters and the optimizer's state, and change neither.

    Args:
        loss: Maps parameters to the scalar that the steps minimise.
        parameters: The parameters of `optimizer`, in the order of its groups.
        optimizer: SGD without momentum, or Adam; see `check_unrollable`.
        steps: K.
        clip: Largest gradient norm of a step; None for no clipping.

    Returns:
        theta^K; for K = 0 the parameters, detached.
    """
    groups = [group for group in optimizer.param_groups for _ in group["params"]]
    states = [optimizer.state.get(p, {}) for group in optimizer.param_groups for p in group["params"]]
    theta = [p.detach().requires_grad_() for p in parameters]
    m = [state.get("exp_avg", torch.zeros_like(p)) for state, p in zip(states, theta, strict=True)]
    v = [state.get("exp_avg_sq", torch.zeros_like(p)) for state, p in zip(states, theta, strict=True)]
    done = [
        torch.as_tensor(state.get("step", 0), dtype=p.dtype, device=p.device)
        for state, p in zip(states, theta, strict=True)
    ]
    for k in range(1, steps + 1):
        gradients = torch.autograd.grad(loss(theta), theta, create_graph=True)
        if clip is not None:  # as `clip_grad_norm_`, and differentiable
            norm = torch.cat([g.flatten() for g in gradients]).norm()
            gradients = tuple(g * (clip / (norm + 1e-6)).clamp(max=1) for g in gradients)
        if not isinstance(optimizer, torch.optim.Adam):
            theta = [p - group["lr"] * g for p, g, group in zip(theta, gradients, groups, strict=True)]
            continue
        for i, (g, group) in enumerate(zip(gradients, groups, strict=True)):
            beta1, beta2 = group["betas"]
            m[i] = beta1 * m[i] + (1 - beta1) * g
            v[i] = beta2 * v[i] + (1 - beta2) * g.square()
            m_hat, v_hat = (x / _one_minus_power(b, done[i] + k) for x, b in ((m[i], beta1), (v[i], beta2)))
            alive = v_hat > 0  # sqrt has no derivative at 0: there all gradients so far were 0
            root = torch.where(alive, torch.where(alive, v_hat, 1.0).sqrt(), 0.0)
            theta[i] = theta[i] - group["lr"] * m_hat / (root + group["eps"])
    return theta


def _one_minus_power(beta: float, t: Tensor) -> Tensor:
    """1 - beta^t for t >= 1, without cancellation in float32."""
    return -torch.expm1(t * (math.log(beta) if beta else -math.inf))


def check_unrollable(optimizer: Optimizer) -> None:
    """Refuses an optimizer whose steps `unroll` does not implement.

    Raises:
        UserError: If it is neither plain SGD nor plain Adam.
    """
    settings = optimizer.param_groups[0]
    switches = ("momentum", "weight_decay", "amsgrad", "maximize", "nesterov")
    used = [name for name in switches if settings.get(name)]
    if not isinstance(optimizer, torch.optim.SGD | torch.optim.Adam) or used:
        what = f"{type(optimizer).__name__} with {used[0]}" if used else type(optimizer).__name__
        raise UserError(f"model.d_optimizer must be plain Adam or SGD to be unrolled, got {what}.")


class UnrolledGAN(Generating):
    """Unrolled GAN. Metz, Poole, Pfau & Sohl-Dickstein (2017), arXiv:1611.02163, Eq. 4 to 9.

    The game is zero-sum, f = -loss.discriminator. The generator minimises f at theta_D^K, the discriminator's
    parameters after K more steps of its own optimizer on the same samples, with gradients through all K steps.
    `loss.generator` is not used.
    """

    tricks_taken = (*Generating.tricks_taken, "replay", "packing")
    ema_modules = ("generator",)
    whole_batch = "the discriminator's unrolled updates"

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        loss: AdversarialLoss,
        latent_dim: int,
        unroll_steps: int,
        simultaneous: bool,
    ) -> None:
        """Joins the players.

        Args:
            loss: `minimax` or `non_saturating` for the paper's f.
            unroll_steps: K; 0 is the plain zero-sum GAN.
            simultaneous: Whether both players move at once, as in the paper's Eq. 8 and 9; else the discriminator moves
                first, as in `gan`.

        Raises:
            ValueError: If K is negative.
        """
        super().__init__()
        if unroll_steps < 0:
            raise ValueError(f"model.unroll_steps must be at least 0, got {unroll_steps}.")
        self.generator, self.discriminator, self.loss = generator, discriminator, loss
        self.latent_dim, self.unroll_steps, self.simultaneous = latent_dim, unroll_steps, simultaneous
        self.add_player("discriminator", discriminator, "d_optimizer")
        self.add_player("generator", generator, "g_optimizer")

    def use_optimizers(self, factories: Mapping[str, OptimizerFactory | SchedulerFactory | None]) -> None:
        """Sets the players' optimizers; see `GenerativeModel.use_optimizers`.

        Raises:
            UserError: If the discriminator's cannot be unrolled; see `check_unrollable`.
        """
        super().use_optimizers(factories)
        check_unrollable(self.moves.make_optimizer("discriminator"))

    @inference
    def score_logits(self, x: Tensor) -> Tensor:
        """The discriminator's logits [N] of samples [N, ...]: log p_data / p_model at its optimum."""
        return self.discriminator(x)

    def unrolled_loss(self, x_real: Tensor, x_fake: Tensor) -> Tensor:
        """-f_K, the discriminator's loss at theta_D^K, a scalar with gradients in x_fake through all K steps."""
        # Every process unrolls on the global batch: steps on its share alone would give other parameters.
        x_real, x_fake = self.gathered(x_real), self.gathered(x_fake)
        names, parameters = zip(*self.discriminator.named_parameters(), strict=True)
        buffers = {
            name: buffer.clone() for name, buffer in self.discriminator.named_buffers()
        }  # not changed by the steps

        def logits(theta: list[Tensor], x: Tensor, state: dict[str, Tensor]) -> Tensor:
            return functional_call(self.discriminator, {**dict(zip(names, theta, strict=True)), **state}, (x,))

        def loss(theta: list[Tensor]) -> Tensor:
            return self.loss.discriminator(logits(theta, x_real, buffers), logits(theta, x_fake, buffers))

        player = self.turn("discriminator")
        assert player.optimizer is not None
        # Second derivatives, as in the penalties. Random labels, if any, are drawn for the global batch.
        with torch.autocast(x_real.device.type, enabled=False), eager(), self.common_draws():
            theta = unroll(loss, list(parameters), player.optimizer.optimizer, self.unroll_steps, player.max_norm)
            # The discriminator's own statistics (its buffers) are updated once by the fakes, as in `gan`.
            logits_fake = logits(theta, x_fake, {})
            return self.loss.discriminator(logits(theta, x_real, buffers), logits_fake)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Eq. 8 and 9: one step of the discriminator on f, one of the generator on f_K."""
        x_real = batch.x
        fakes = self.fakes(len(x_real))

        # Discriminator: minimise -f, from theta_D^0.
        with self.turn("discriminator") as discriminator:
            logits_real, logits_fake = self.discriminator(x_real), self.discriminator(fakes.shown)
            d_loss = self.loss.discriminator(logits_real, logits_fake)
            if self.simultaneous:
                discriminator.collect(d_loss)
            else:
                discriminator.minimise(d_loss)

        # Generator: minimise f_K.
        with self.turn("generator") as generator:
            x_fake = fakes.again()
            g_loss = -self.unrolled_loss(x_real, x_fake)
            if self.simultaneous:
                generator.collect(g_loss)
            else:
                generator.minimise(g_loss)

        if self.simultaneous:
            self.step("discriminator", "generator")

        self.record(d_loss=d_loss, g_loss=g_loss, gain=g_loss.detach() + d_loss.detach())  # f_K - f
        self.record_logits(logits_real, logits_fake)
