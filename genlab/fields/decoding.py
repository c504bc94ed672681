"""One encoded image to a uint8 array of one size. Free of torch, so that a worker process is ready at once."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps


def decode_image(data: bytes, size: tuple[int, int], channels: int) -> np.ndarray:
    """One encoded image at the training size.

    Args:
        data: The file's bytes.
        size: Height and width in pixels.
        channels: 1 or 3.

    Returns:
        uint8 [C, H, W].

    Raises:
        Exception: If the image is damaged; PIL raises many types.
    """
    with Image.open(io.BytesIO(data)) as image:
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:  # PIL itself only warns up to twice the limit
            raise ValueError(f"{image.width} x {image.height} pixels, more than {limit}: a decompression bomb?")
        # Large JPEGs are decoded at 1/2, 1/4 or 1/8 of their size, to at least twice the target for the Lanczos filter.
        image.draft("RGB", (2 * max(size), 2 * max(size)))
        image.load()
        upright = ImageOps.exif_transpose(image) if image.getexif().get(0x0112, 1) != 1 else image
        return fit_image(upright, size, channels)


def fit_image(image: Image.Image, size: tuple[int, int], channels: int) -> np.ndarray:
    """One PIL image at the training size.

    Args:
        image: An image of any mode; transparency is dropped, and 16-bit values keep their upper eight bits.
        size: Height and width in pixels.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        uint8 [C, H, W]: the centre of the image in the aspect ratio of `size`, resized with the Lanczos filter.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):  # PIL's conversion would clip 16-bit greys to 255
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if image.size != (size[1], size[0]):
        image = centre_crop(image, size).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def centre_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The largest centred part with the aspect ratio of `size`, in whole pixels.

    The crop precedes the resize, as in the published CelebA protocol. With ImageOps.fit the resize filter would use
    pixels beyond the edge of the crop.
    """
    width = min(image.width, max(1, round(image.height * size[1] / size[0])))
    height = min(image.height, max(1, round(image.width * size[0] / size[1])))
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
