"""One encoded image to a uint8 array of one size. Free of torch, so that a worker process is ready at once."""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from genlab.errors import UserError

BITS = (8, 10, 12, 14, 16)  # of the values in a 16-bit image
_COLOURS = {"white": (255, 255, 255), "black": (0, 0, 0)}
_DEEP = re.compile(";16[BLN]")  # in PIL's names of the layouts of a file's pixels; "BGR;16" has 5 or 6 bits a colour
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # first bytes of the format


def check_reading(background: str, bits: int | None) -> None:
    """Refuses a background that is no colour, and a number of bits that 16-bit images cannot have.

    Raises:
        UserError: If one is wrong.
    """
    colour_of(background)
    if bits is not None and (isinstance(bits, bool) or bits not in BITS):
        raise UserError(f"data.bits must be {', '.join(map(str, BITS))} or null, got {bits!r}. Try data.bits=null.")


def colour_of(background: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of `white`, `black` or `#rrggbb`.

    Raises:
        UserError: If it is none of these.
    """
    name = str(background).lower()
    if name in _COLOURS:
        return _COLOURS[name]
    if not re.fullmatch("#[0-9a-f]{6}", name):
        raise UserError(
            f"data.background must be white, black or '#rrggbb', got {background!r}. Try data.background=white."
        )
    return int(name[1:3], 16), int(name[3:5], 16), int(name[5:7], 16)


def bits_for(largest: int) -> int:
    """The fewest of 8, 10, 12, 14 and 16 bits that hold a value from 0 to 65535."""
    return next(bits for bits in BITS if largest < 2**bits)


def decode_image(
    data: bytes, size: tuple[int, int], channels: int, background: str = "white", bits: int | None = None
) -> np.ndarray:
    """One encoded image at the training size; see `read_image`.

    Returns:
        uint8 [C, H, W].
    """
    return read_image(data, size, channels, background, bits)[0]


def read_image(
    data: bytes, size: tuple[int, int], channels: int, background: str = "white", bits: int | None = None
) -> tuple[np.ndarray, int | None]:
    """One encoded image at the training size, and the largest value of a 16-bit one.

    Floating-point pixels are multiplied by 255. Whole numbers of more than 8 bits lose all bits but the upper eight of
    `bits`. Transparent pixels show the background.

    Args:
        data: The file's bytes.
        size: Height and width in pixels.
        channels: 1 or 3.
        background: `white`, `black` or `#rrggbb`.
        bits: Of the values in a 16-bit image, 8 to 16; None: those that its largest value needs.

    Returns:
        uint8 [C, H, W], and the largest value, 0 to 65535, of an image with more than 8 bits a channel; None for
        others. Of colours it is known to the upper eight bits only, as PIL reads no others.

    Raises:
        Exception: If the image is damaged (PIL raises many types), has floating-point pixels outside of [0, 1], or
            whole numbers outside of those of `bits`.
    """
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        if data[:4] in _TIFF:
            raise ValueError("a TIFF that is damaged, or of a kind that Pillow does not read") from None
        raise
    with image:
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:  # PIL itself only warns up to twice the limit
            raise ValueError(f"{image.width} x {image.height} pixels, more than {limit}: a decompression bomb?")
        # Large JPEGs are decoded at 1/2, 1/4 or 1/8 of their size, to at least twice the target for the Lanczos filter.
        image.draft("RGB", (2 * max(size), 2 * max(size)))
        deep = is_deep(image)  # known before the pixels are loaded
        image.load()
        largest = _largest(image) if deep else None
        upright = ImageOps.exif_transpose(image) if image.getexif().get(0x0112, 1) != 1 else image
        return fit_image(upright, size, channels, background, _bits(upright, largest, bits)), largest


def is_deep(image: Image.Image) -> bool:
    """Whether the pixels of an opened image, not yet loaded, are whole numbers of more than 8 bits."""
    return _whole(image) or any(_DEEP.search(str(tile[3])) for tile in getattr(image, "tile", ()))


def largest_value(data: bytes) -> int | None:
    """The largest value of an encoded image with more than 8 bits a channel, as in `read_image`; None for others."""
    with Image.open(io.BytesIO(data)) as image:
        if not is_deep(image):
            return None
        image.load()
        return _largest(image)


def _whole(image: Image.Image) -> bool:
    """Whether pixels are greys of 16 or 32 bits; of colours PIL keeps 8 bits."""
    return image.mode == "I" or image.mode.startswith("I;16")


def _largest(image: Image.Image) -> int:
    """The largest value of a loaded image with more than 8 bits.

    Raises:
        ValueError: If values lie outside of 0 to 65535.
    """
    if not _whole(image):
        colours = np.asarray(image.convert("RGB"))  # the upper bytes
        return 256 * int(colours.max()) + 255
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= 2**16:
        raise ValueError(f"pixels from {low} to {high}; whole numbers are read from 0 to 65535")
    return high


def _bits(image: Image.Image, largest: int | None, bits: int | None) -> int:
    """Bits of an image's values; 16 where there are no more than 8.

    Raises:
        ValueError: If `bits` are too few for the values, or for colours, whose lower eight bits PIL does not read.
    """
    if largest is None:
        return 16
    if not _whole(image):
        if bits is not None and bits < 16:
            raise ValueError(f"colours of {bits} bits in 16, of which Pillow reads only the upper eight; convert it")
        return 16
    if bits is not None and largest >= 2**bits:
        raise ValueError(f"a pixel of {largest}, more than the {2**bits - 1} of data.bits={bits}")
    return bits_for(largest) if bits is None else bits


def fit_image(
    image: Image.Image, size: tuple[int, int], channels: int, background: str = "white", bits: int = 16
) -> np.ndarray:
    """One PIL image at the training size.

    Args:
        image: An image of any mode.
        size: Height and width in pixels.
        channels: 1 (grey) or 3 (RGB).
        background: Colour under transparent pixels, `white`, `black` or `#rrggbb`.
        bits: Of the values in an image of 16 or 32 bits a pixel; the upper eight are kept.

    Returns:
        uint8 [C, H, W]: the centre of the image in the aspect ratio of `size`, resized with the Lanczos filter.

    Raises:
        ValueError: If floating-point pixels are not in [0, 1].
    """
    if image.mode == "F":
        values = np.asarray(image)
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # NaN as well
            raise ValueError(f"floating-point pixels from {low:g} to {high:g}; they are read from 0 to 1")
        image = Image.fromarray(np.rint(values * 255).astype(np.uint8))
    elif _whole(image):  # PIL's conversion would clip them to 255
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> (bits - 8)).clip(0, 255).astype(np.uint8))
    image = opaque(image, background)
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if image.size != (size[1], size[0]):
        image = centre_crop(image, size).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def opaque(image: Image.Image, background: str = "white") -> Image.Image:
    """The image on a background of one colour; the same image if nothing in it is transparent."""
    if not image.has_transparency_data:
        return image
    layered = image.convert("RGBA")
    if layered.getchannel("A").getextrema() == (255, 255):
        return image
    under = Image.new("RGBA", image.size, (*colour_of(background), 255))
    return Image.alpha_composite(under, layered).convert("RGB")


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
