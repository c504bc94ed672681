"""Rivals of genlab in speed: the same step written by hand, pythae's trainer, torchvision's ImageFolder."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genlab.runs.running import Parts

Runner = Callable[[int], object]
"""Runs the given number of iterations."""
Step = Callable[["Tensor"], None]


class Turnstile:
    """Runs a loop in its own thread, a given number of rounds at a time; caller and loop never run at once.

    A training restarted for every measurement would include its start-up each time.
    """

    def __init__(self) -> None:
        self._start, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._left, self._closed = 0, False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def open(self, target: Callable[[], object]) -> None:
        """Starts the loop and waits until it reaches its first round.

        Raises:
            BaseException: The error of the loop, of any type.
        """

        def run() -> None:
            try:
                target()
            except _Closed:
                pass
            except BaseException as error:  # raised again in the waiting thread
                self._error = error
            self._done.release()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        self._wait()

    def enter(self) -> bool:
        """Called by the loop before each round: waits for its turn, and returns False if the loop must end."""
        if self._left == 0 and not self._closed:
            self._done.release()
            self._start.acquire()
        self._left -= 1
        return not self._closed

    def __call__(self, count: int) -> None:
        """Runs `count` rounds and waits for their end."""
        self._left = count
        self._start.release()
        self._wait()

    def close(self) -> None:
        """Ends the loop."""
        if self._thread is not None and self._thread.is_alive():
            self._closed = True
            self._start.release()
            self._thread.join(60)

    def _wait(self) -> None:
        self._done.acquire()
        if self._error is not None:
            raise self._error


class _Closed(Exception):
    """Ends a loop that has no other exit."""


# --- By hand --------------------------------------------------------------------------------------------------------


def by_hand(parts: Parts, device: torch.device, freeze: bool) -> Runner:
    """The same step in straightforward PyTorch, float32, on batches from the same stream, without logging and average.

    Fakes are generated once for each player; optimizers are torch's defaults.

    Args:
        parts: Composition for this rival alone; its networks are trained.
        device: Device of the training.
        freeze: Whether the idle player's parameters are frozen, which saves computing their gradients.

    Raises:
        UserError: If there is no hand-written step for the composition.
    """
    step = _step(parts, device, freeze)
    parts.data.setup()
    batches = iter(parts.data.stream(device=device))

    def run(count: int) -> None:
        for _ in range(count):
            step(next(batches).x)

    return run


def has_idle_player(parts: Parts) -> bool:
    """Whether there is an idle player to freeze."""
    return len(parts.model.players) > 1


def _step(parts: Parts, device: torch.device, freeze: bool) -> Step:
    from dataclasses import asdict

    from genlab.config.schema import TricksConfig
    from genlab.losses.kl import Constant
    from genlab.losses.likelihoods import Bernoulli
    from genlab.models.gan import GAN
    from genlab.models.vae import VAE
    from genlab.models.wgan_gp import WGANGP
    from genlab.networks.posteriors import Diagonal

    model: Any = parts.model.to(device).train()
    model.spec = parts.data.spec
    tricks = (parts.config.get("tricks") or {}) != asdict(TricksConfig())
    if type(model) is GAN and model.penalty is None and not tricks:
        return _gan_step(model, freeze)
    if type(model) is WGANGP and not tricks:
        return _wgan_gp_step(model, freeze)
    if type(model) is VAE:
        plain = model.prior.standard and type(model.family) is Diagonal and type(model.kl) is Constant
        if plain and type(model.likelihood) is Bernoulli and model.kl_weight == 1:
            return _vae_step(model)
    raise UserError(
        f"No step was written by hand for {type(model).__name__} with these parts; there is one for gan and wgan_gp "
        "without tricks and penalties, and for vae with a Bernoulli likelihood and Gaussians."
    )


def _optimizer(model: Any, player: str) -> torch.optim.Optimizer:
    return model.moves.make_optimizer(player)


def _gan_step(model: Any, freeze: bool) -> Step:
    """One discriminator and one generator update."""
    import torch

    generator, discriminator, loss, size = model.generator, model.discriminator, model.loss, model.latent_dim
    d_opt, update_generator = _optimizer(model, "discriminator"), _generator_update(model, discriminator, freeze)

    def step(x_real: Tensor) -> None:
        with torch.no_grad():
            x_fake = generator(torch.randn(len(x_real), size, device=x_real.device))
        d_loss = loss.discriminator(discriminator(x_real), discriminator(x_fake))
        d_opt.zero_grad()
        d_loss.backward()
        d_opt.step()
        update_generator(torch.randn(len(x_real), size, device=x_real.device))

    return step


def _generator_update(model: Any, judge: Any, freeze: bool) -> Callable[[Tensor], None]:
    """The generator's update from latents [N, Z], with the discriminator frozen meanwhile or not."""
    optimizer = _optimizer(model, "generator")
    weights = list(judge.parameters()) if freeze else []

    def update(z: Tensor) -> None:
        for weight in weights:
            weight.requires_grad_(False)
        g_loss = model.loss.generator(judge(model.generator(z)))
        optimizer.zero_grad()
        g_loss.backward()
        optimizer.step()
        for weight in weights:
            weight.requires_grad_(True)

    return update


def _wgan_gp_step(model: Any, freeze: bool) -> Step:
    """`n_critic` critic updates with the penalty, one generator update."""
    import torch

    generator, critic, loss, size = model.generator, model.critic, model.loss, model.latent_dim
    c_opt, update_generator = _optimizer(model, "critic"), _generator_update(model, critic, freeze)

    def penalty(x_real: Tensor, x_fake: Tensor) -> Tensor:
        alpha = torch.rand(len(x_real), *[1] * (x_real.dim() - 1), device=x_real.device)
        x = (alpha * x_real + (1 - alpha) * x_fake).requires_grad_(True)
        (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        return (slope.flatten(1).norm(dim=1) - 1).square().mean()

    def step(x: Tensor) -> None:
        for x_real in x.chunk(model.n_critic):
            with torch.no_grad():
                x_fake = generator(torch.randn(len(x_real), size, device=x.device))
            c_loss = loss.discriminator(critic(x_real), critic(x_fake)) + model.gp_weight * penalty(x_real, x_fake)
            c_opt.zero_grad()
            c_loss.backward()
            c_opt.step()
        update_generator(torch.randn(len(x_real), size, device=x.device))

    return step


def _vae_step(model: Any) -> Step:
    """One update on the negative ELBO."""
    import torch
    import torch.nn.functional as F

    encoder, decoder = model.encoder, model.decoder
    optimizer = _optimizer(model, "vae")

    def step(x: Tensor) -> None:
        mu, logvar = encoder(x).chunk(2, dim=1)
        raw = decoder(mu + (0.5 * logvar).exp() * torch.randn_like(mu))
        recon = F.binary_cross_entropy_with_logits(raw, (x + 1) / 2, reduction="none").flatten(1).sum(1).mean()
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1).mean()
        optimizer.zero_grad()
        (recon + kl).backward()
        optimizer.step()

    return step


# --- pythae ---------------------------------------------------------------------------------------------------------


class Pythae:
    """The VAE trainer of pythae (Chadebec et al. 2022, arXiv:2206.08309) with its default networks, epoch by epoch.

    Dataset, loader, progress bar and best-model copy are those of pythae; nothing is evaluated.

    Args:
        parts: Composition with the images, latent size and batch size.
        folder: Output folder.

    Raises:
        UserError: If pythae is not installed.
    """

    def __init__(self, parts: Parts, folder: Path) -> None:
        from importlib.util import find_spec

        if find_spec("pythae") is None:
            raise UserError("pythae is not installed (pip install pythae)")
        import torch
        from pythae.data.datasets import BaseDataset
        from pythae.models import VAE, VAEConfig
        from pythae.trainers import BaseTrainer, BaseTrainerConfig
        from pythae.trainers.training_callbacks import TrainingCallback

        turnstile = self._turnstile = Turnstile()

        class Gate(TrainingCallback):
            def on_epoch_begin(self, *_: Any, **__: Any) -> None:
                if not turnstile.enter():
                    raise _Closed

        parts.data.setup()
        store, size = parts.data.split("train"), parts.data.batch_size
        images = store.gather(torch.arange(len(store))).float() / 255
        config = BaseTrainerConfig(str(folder), per_device_train_batch_size=size, num_epochs=10**9)
        vae = VAE(VAEConfig(tuple(parts.data.spec.shape), parts.model.latent_dim, reconstruction_loss="bce"))
        dataset = BaseDataset(images, torch.zeros(len(images)))
        trainer = BaseTrainer(vae, dataset, training_config=config, callbacks=[Gate()])
        self.epoch = len(trainer.train_loader)  # iterations
        self.parameters = sum(p.numel() for p in vae.parameters())
        self._turnstile.open(trainer.train)

    def __call__(self, count: int) -> None:
        """Runs `count` iterations, rounded down to whole epochs."""
        self._turnstile(count // self.epoch)

    def close(self) -> None:
        """Ends the training."""
        self._turnstile.close()


# --- Images ---------------------------------------------------------------------------------------------------------


def write_jpegs(folder: Path, source: Path | None, size: int, count: int) -> None:
    """Writes JPEGs of one size to ten sub-folders.

    Args:
        folder: Output folder.
        source: Folder of images, of which `count` are used; None for patches of scikit-learn's two photographs.
        size: Height and width in pixels.
        count: Number of JPEGs.
    """
    from PIL import Image

    images = _patches(size, count) if source is None else _resized(source, size, count)
    for k, image in enumerate(images):
        path = folder / str(k % 10) / f"{k:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, quality=92)


def _patches(size: int, count: int) -> Iterator[Any]:
    import numpy as np
    from sklearn.datasets import load_sample_images

    photographs, random = load_sample_images().images, np.random.RandomState(0)
    for k in range(count):
        photograph = photographs[k % len(photographs)]
        top, left = (random.randint(0, n - size) for n in photograph.shape[:2])
        yield photograph[top : top + size, left : left + size]


def _resized(source: Path, size: int, count: int) -> Iterator[Any]:
    from genlab.data.folders import walk
    from genlab.fields.decoding import decode_image

    files = sorted(walk(source))
    if not files:
        raise UserError(f"There are no images in images={source}; give a folder of images, or leave it out.")
    for path in files[:: max(1, len(files) // count)][:count]:
        yield decode_image(path.read_bytes(), (size, size), 3).transpose(1, 2, 0)


def image_folder_epoch(folder: Path, batch_size: int) -> Callable[[], None]:
    """A function for one epoch of torchvision's ImageFolder and DataLoader without workers: decode, flip, normalise."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    steps = [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    source = datasets.ImageFolder(str(folder), transforms.Compose(steps))
    loader = DataLoader(source, batch_size, shuffle=True, num_workers=0)

    def epoch() -> None:
        for _ in loader:
            pass

    return epoch
