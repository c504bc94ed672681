"""SSIM and MS-SSIM of Wang et al. as torchmetrics' classes, over the windows that lie wholly within the image.

Wang's code, scikit-image and tf.image use these windows. torchmetrics 1.9 pads by reflection and averages over the
border too, and its MS-SSIM multiplies terms with and without the border: on MNIST this reversed the order of blur and
noise.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.image.ssim import MultiScaleStructuralSimilarityIndexMeasure, StructuralSimilarityIndexMeasure

from genlab.floats import in_float64

K1, K2 = 0.01, 0.03  # Wang et al. (2004): constants added to means and variances, as shares of the range
BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. (2003): weights of the scales, finest first


class SSIM(StructuralSimilarityIndexMeasure):
    """torchmetrics' SSIM of images in [0, 1], one value for each image, with `ssim` in `update`.

    The parent averages over windows that reach over the border, which it fills by reflection.

    Args:
        window: Side of the Gaussian window, in pixels, odd.
        sigma: Its standard deviation, in pixels.
    """

    def __init__(self, window: int = 11, sigma: float = 1.5) -> None:
        how = {"kernel_size": window, "sigma": sigma, "data_range": 1.0, "reduction": "none"}
        super().__init__(**how, k1=K1, k2=K2, sync_on_compute=False)  # type: ignore[arg-type]

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds pairs of images [N, C, H, W]."""
        self.similarity.append(ssim(preds, target, self.kernel_size, self.sigma))  # type: ignore[operator, union-attr, arg-type]


class MultiScaleSSIM(MultiScaleStructuralSimilarityIndexMeasure):
    """torchmetrics' MS-SSIM of images in [0, 1], one value for each pair, with `ms_ssim` in `update`.

    The parent multiplies terms with and without the border, and takes five scales only.

    Args:
        scales: 1 to 5; the weights of the scales in use are normalised to sum to 1.
        window: Side of the Gaussian window, in pixels, odd.
        sigma: Its standard deviation, in pixels.
    """

    def __init__(self, scales: int = 5, window: int = 11, sigma: float = 1.5) -> None:
        how = {"kernel_size": window, "sigma": sigma, "data_range": 1.0, "reduction": "none"}
        super().__init__(**how, k1=K1, k2=K2, betas=BETAS[:scales], sync_on_compute=False)  # type: ignore[arg-type]

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds pairs of images [N, C, H, W]."""
        how = len(self.betas), self.kernel_size, self.sigma
        self.similarity.append(ms_ssim(preds, target, *how))  # type: ignore[operator, union-attr, arg-type]


def gaussian(window: int, sigma: float) -> Tensor:
    """Weights [window] of a Gaussian, float64, summing to 1."""
    place = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
    weights = (-place.square() / (2 * sigma**2)).exp()
    return weights / weights.sum()


def _terms(x: Tensor, y: Tensor, window: int, sigma: float) -> tuple[Tensor, Tensor]:
    """SSIM, and its factor of contrast and structure, of each image: means over channels and windows, [N] each."""
    n, channels = x.shape[:2]
    weights = gaussian(window, sigma).to(x)
    stack = torch.cat([x, y, x * x, y * y, x * y]).flatten(0, 1).unsqueeze(1)
    stack = F.conv2d(F.conv2d(stack, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    mean_x, mean_y, xx, yy, xy = stack.view(5, n, channels, *stack.shape[2:])
    var_x, var_y = (xx - mean_x.square()).clamp_min(0), (yy - mean_y.square()).clamp_min(0)
    structure = (2 * (xy - mean_x * mean_y) + K2**2) / (var_x + var_y + K2**2)
    light = (2 * mean_x * mean_y + K1**2) / (mean_x.square() + mean_y.square() + K1**2)
    return (light * structure).flatten(1).mean(dim=1), structure.flatten(1).mean(dim=1)


def ssim(x: Tensor, y: Tensor, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity of pairs of images, 1 where they agree. Wang et al. (2004), doi:10.1109/TIP.2003.819861.

    Args:
        x: Images [N, C, H, W], values in [0, 1].
        y: Images of the same shape and range.
        window: Side of the Gaussian window, odd, at most min(H, W).
        sigma: Standard deviation of the window, in pixels.

    Returns:
        [N], in float64: the mean over channels and over the windows that lie within the image.

    Raises:
        ValueError: If the shapes differ or the window is even or larger than the image.
    """
    _check(x, y, window, 1)
    return _terms(in_float64(x), in_float64(y), window, sigma)[0]


def ms_ssim(x: Tensor, y: Tensor, scales: int = 5, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Multi-scale SSIM. Wang, Simoncelli & Bovik (2003), doi:10.1109/ACSSC.2003.1292216, Eq. 7.

    The product over scales of the mean contrast and structure (at the coarsest scale: of SSIM), each to the power of
    its scale's weight. Each scale is the previous one averaged over 2 x 2 pixels.

    Args:
        x: Images [N, C, H, W], values in [0, 1].
        y: Images of the same shape and range.
        scales: 1 to 5; the weights of the scales in use are normalised to sum to 1.
        window: Side of the Gaussian window, odd, at most that of the coarsest image.
        sigma: Standard deviation of the window, in pixels.

    Returns:
        [N], in float64, 0 to 1: factors below 0 are clamped to 0.

    Raises:
        ValueError: If the shapes differ, or the window is even or larger than the coarsest image.
    """
    if not 1 <= scales <= len(BETAS):
        raise ValueError(f"MS-SSIM has 1 to {len(BETAS)} scales, got {scales}.")
    _check(x, y, window, scales)
    x, y = in_float64(x), in_float64(y)
    result = torch.ones(len(x), dtype=torch.float64, device=x.device)
    for scale, beta in enumerate(BETAS[:scales]):
        whole, structure = _terms(x, y, window, sigma)
        factor = whole if scale == scales - 1 else structure
        result = result * factor.clamp_min(0) ** (beta / sum(BETAS[:scales]))
        if scale < scales - 1:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return result


def _check(x: Tensor, y: Tensor, window: int, scales: int) -> None:
    if x.shape != y.shape or x.ndim != 4:
        raise ValueError(f"Images must be [N, C, H, W] of one shape, got {tuple(x.shape)} and {tuple(y.shape)}.")
    side = min(x.shape[2:]) >> (scales - 1)
    if not (window % 2 == 1 and 1 <= window <= side):
        raise ValueError(f"The window must be odd and at most {side} pixels, got {window}.")
