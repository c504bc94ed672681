"""The published network of FID, KID and IS as an extractor: weights from a file, resize, features and logits.

Images are resized by TensorFlow's bilinear rule, as two matrix products; the network, with the features of the
published one, is `genlab.networks.inception`.
"""

import os
import pickle
import sys
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genlab.commands import program
from genlab.errors import UserError, sentence
from genlab.extractors.checksums import file_checksum, tensors_checksum
from genlab.fields.drawing import to_rgb
from genlab.metrics.features import full_float32
from genlab.networks.inception import Inception, fold, published_layout

FILE_NAME = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE_NAME}"
SHA256_PREFIX = "6726825d"  # the convention of torch.hub: the first digits of the file's SHA-256 are in its name
INPUT_SIZE = 299
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resize_matrix(size: int, out: int, device: torch.device | None = None) -> Tensor:
    """TensorFlow 1's bilinear resize along one axis, as a float32 matrix [out, size].

    Output i reads position i * size / out (in float32, as the kernel does): no half-pixel shift, no antialiasing.
    """
    position = torch.arange(out, dtype=torch.float32) * torch.tensor(size / out, dtype=torch.float32)
    low = position.long()
    high = (low + 1).clamp_max(size - 1)
    share = position - low
    row = torch.arange(out)
    matrix = torch.zeros(out, size)
    matrix[row, low] += 1 - share
    matrix[row, high] += share
    return matrix.to(device)


def _fetching() -> str:
    """The command that fetches the file."""
    return f"{program('evaluate')} --fetch-inception"


def find_inception_weights(path: str | os.PathLike[str] | None = None, download: bool = False) -> Path:
    """The weight file: `path`, else torch hub's cache, else (only if `download`) fetched into that cache.

    Raises:
        UserError: If there is no file, or the cached or fetched file is not the published one.
    """
    if path is not None:
        found = Path(path).expanduser()
        if not found.is_file():
            raise UserError(
                f"There is no file {found}: set metrics.inception_weights to {FILE_NAME} (from {URL}), "
                "or use metrics.extractor=classifier."
            )
        return found
    cached = Path(torch.hub.get_dir()) / "checkpoints" / FILE_NAME
    elsewhere = f"fetch {URL} elsewhere and set metrics.inception_weights=PATH, or use metrics.extractor=classifier"
    if not cached.is_file() and download:
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            # Writes beside the target, checks the digest, then renames.
            torch.hub.download_url_to_file(URL, str(cached), hash_prefix=SHA256_PREFIX, progress=sys.stderr.isatty())
        except (OSError, RuntimeError, HTTPException) as error:
            raise UserError(
                f"The Inception weights could not be fetched to {cached.parent} ({sentence(error)}): {elsewhere}."
            ) from error
    if not cached.is_file():
        raise UserError(
            f"metrics.extractor=inception needs {FILE_NAME}, which is not in {cached.parent}: fetch it with "
            f"{_fetching()}, or {elsewhere}."
        )
    if not file_checksum(cached).startswith(SHA256_PREFIX):
        raise UserError(
            f"{cached} is damaged (its SHA-256 does not begin with {SHA256_PREFIX}): delete it and fetch it again with "
            f"{_fetching()}, or set metrics.inception_weights=PATH."
        )
    return cached


def read_inception_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Tensors of a torch-fidelity Inception file, read without running any code from it.

    Raises:
        UserError: If the file is unreadable or holds another network, such as torchvision's InceptionV3.
    """
    hint = f"metrics.inception_weights must be {FILE_NAME} from {URL}"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} cannot be read as PyTorch weights; {hint}.") from error
    layout = published_layout()
    if not isinstance(state, Mapping):
        raise UserError(f"{path} holds a {type(state).__name__}, not named tensors; {hint}.")
    wrong = [key for key, shape in layout.items() if tuple(getattr(state.get(key), "shape", ())) != shape]
    if wrong:
        raise UserError(
            f"{path} is not the FID Inception network: {len(wrong)} of {len(layout)} tensors are missing or have "
            f"another shape, the first being {wrong[0]}; {hint}."
        )
    return {key: state[key] for key in layout}


class InceptionExtractor(nn.Module):
    """uint8 images to the 2048 pooled features (FID, KID) and the 1008 logits without bias (IS).

    Grey images are repeated to three channels. All sizes are resized to 299x299 by TensorFlow 1's bilinear rule, the
    published protocol (torchmetrics' default `antialias=True` is not, and gives other scores).

    Args:
        state: Tensors in torch-fidelity's layout (`read_inception_weights`).
        checksum: SHA-256 of the weights for the protocol card; computed from the tensors when not given.
        precision: "float32", or "bfloat16" for monitoring: about 2-3 times as fast if the hardware supports it, with
            features off by one or two per cent. The name then differs, because the scores are not comparable.

    Raises:
        UserError: If the precision is neither.
    """

    num_features = 2048
    num_classes = 1008
    fc_weight: Tensor

    def __init__(self, state: Mapping[str, Tensor], *, checksum: str | None = None, precision: str = "float32") -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise UserError(f"The Inception network's precision must be {' or '.join(PRECISIONS)}, got {precision!r}.")
        self.precision = precision
        self.name = "inception" if precision == "float32" else "inception-bf16"
        self.checksum = checksum or tensors_checksum({key: state[key] for key in published_layout()})
        with torch.device("meta"):  # no random initial values, so the global random stream is not used
            self.net = Inception()
        fold(state, self.net)
        self.net.to(PRECISIONS[precision]).to(memory_format=torch.channels_last)
        self.register_buffer("fc_weight", state["fc.weight"].detach().clone().float())
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "InceptionExtractor":
        """Stays in eval mode; `mode` is ignored."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, 2048] and logits [N, 1008], float32, of uint8 images [N, 1 or 3, H, W] (moved to its device)."""
        if images.dtype != torch.uint8:
            raise ValueError(f"The Inception network takes uint8 images, got {images.dtype}; to_uint8 converts them.")
        device = self.fc_weight.device
        chunk = 16 if device.type == "cpu" else 128  # small batches suit a CPU's caches; memory stays bounded
        with full_float32(device):
            features = [self._features(part.to(device)) for part in images.split(chunk)]
            out = torch.cat(features) if features else torch.zeros(0, 2048, device=device)
            return out, out @ self.fc_weight.T

    def _features(self, images: Tensor) -> Tensor:
        x = to_rgb(images).float()
        rows = resize_matrix(x.shape[2], INPUT_SIZE, x.device)
        columns = resize_matrix(x.shape[3], INPUT_SIZE, x.device)
        x = torch.matmul(torch.matmul(rows, x), columns.T)
        x = ((x - 128) / 128).to(PRECISIONS[self.precision])
        return self.net(x.contiguous(memory_format=torch.channels_last))

    def card(self) -> dict[str, Any]:
        """The extractor's part of a score's card: scores with different cards are not comparable."""
        return {
            "extractor": self.name,
            "checksum": self.checksum,
            "resize": "299x299, TensorFlow 1 bilinear, antialias=False",
            "precision": self.precision,
        }


def load_inception(
    weights: str | os.PathLike[str] | None = None, *, download: bool = False, precision: str = "float32"
) -> InceptionExtractor:
    """The extractor from a file, torch hub's cache or (if `download`) the network; see `find_inception_weights`."""
    path = find_inception_weights(weights, download)
    return InceptionExtractor(read_inception_weights(path), checksum=file_checksum(path), precision=precision)
