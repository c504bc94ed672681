"""Image sets from any source (a folder, a zip or an npz), as uint8 arrays of one size."""

from __future__ import annotations

import io
import logging
import re
import zipfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from genlab.data.store import ImageEntry

log = logging.getLogger("genlab")
LAYOUT = (
    "expected is a folder or zip of images, or an .npz with a uint8 array `x` of shape [N, H, W, C], C = 1 or 3 "
    "(and optionally labels `y` [N])"
)
NAMED = 3  # sizes listed in a message at most


@dataclass
class ImageSet:
    """Images of one size.

    Attributes:
        name: Path of the set.
        x: uint8 [N, C, H, W].
        y: Labels [N], -1 = missing; None if there are none.
        fingerprint: Hash of the pixels.
    """

    name: str
    x: Tensor
    y: Tensor | None
    fingerprint: str


@dataclass
class _Source:
    """An image set before resizing."""

    path: Path
    key: str
    entries: list[ImageEntry] | None = None
    array: np.ndarray | None = None
    labels: np.ndarray | None = None
    sizes: set[tuple[int, int]] | None = None
    grey: bool = True


def load_image_sets(
    paths: dict[str, str | Path],
    size: int | list[int] | None = None,
    skip_broken: bool = False,
    background: str = "white",
    bits: int | None = None,
) -> tuple[dict[str, ImageSet], str]:
    """Reads image sets for comparison, with one size and one number of channels.

    Args:
        paths: Path of each set, by its key (`real`, `fake`, `train`).
        size: Pixels, or [height, width]: every image is centre-cropped to that aspect ratio and resized (Lanczos).
            None keeps the pixels; all images of all sets must then have one size.
        skip_broken: Skip unreadable images with a warning, instead of refusing the set.
        background: Colour under transparent pixels, `white`, `black` or `#rrggbb`.
        bits: Of the values in 16-bit images, 8 to 16; None: those that the largest value of a set needs, of the first
            set with such images for the others too.

    Returns:
        The sets by key, and the resizing rule for the protocol card.

    Raises:
        UserError: If a path or layout is invalid, an image is broken (the message names it), or sizes differ and
            `size` is None.
    """
    from genlab.fields.decoding import check_reading

    try:
        check_reading(background, bits)
    except UserError as error:
        raise _without_data(error) from error
    with ExitStack() as stack:
        sources = {key: _open(key, Path(path).expanduser(), stack, background) for key, path in paths.items()}
        found = {key: source.sizes or set() for key, source in sources.items()}
        every = set().union(*found.values())
        if size is None and len(every) > 1:
            listed = "; ".join(f"{key}: {_listed(sizes)}" for key, sizes in found.items())
            raise UserError(
                f"The images differ in size ({listed}); scores need one size: set size={min(min(s) for s in every)} "
                "to centre-crop and resize each image (Lanczos)."
            )
        wanted = next(iter(every), (0, 0)) if size is None else _as_size(size)
        channels = 1 if all(source.grey for source in sources.values()) else 3
        rule = "none" if size is None else f"centre crop, Lanczos to {wanted[0]}x{wanted[1]}"
        sets = {}
        for key, source in sources.items():
            sets[key], bits = _load(source, wanted, channels, skip_broken, background, bits)
        return sets, rule


def _open(key: str, path: Path, stack: ExitStack, background: str) -> _Source:
    from genlab.data.folders import file_entry, unwrapped, walk, zip_entries  # read like data=folder and zip

    if path.is_dir():
        files = unwrapped([file_entry(path, each) for each in walk(path)], path)
    elif not path.is_file():
        raise UserError(f"No file or folder at {key}={path}; {LAYOUT}.")
    elif path.suffix.lower() in (".npz", ".npy"):
        return _open_array(key, path)
    elif zipfile.is_zipfile(path):
        archive = stack.enter_context(zipfile.ZipFile(path))
        files = unwrapped(list(zip_entries(archive)), path)
    else:
        raise UserError(f"{key}={path} has an unknown format; {LAYOUT}.")
    if not files:
        raise UserError(f"There are no images in {key}={path}; {LAYOUT}.")
    source = _Source(path, key, entries=_labelled(files, f"{key}={path}"))
    source.sizes, source.grey = _headers(source.entries or [], background)
    return source


def _labelled(files: list[tuple[tuple[str, ...], ImageEntry]], what: str) -> list[ImageEntry]:
    """Entries in order of path; their first sub-folder is their class if all images lie in one of several sub-folders.

    There are no classes if a sub-folder is named like a split (train, test). A warning tells of images in `what` beside
    the folders of classes.
    """
    from genlab.data.folders import SPLIT_FOLDERS
    from genlab.data.store import ImageEntry

    files = sorted(files, key=lambda file: file[0])
    names = sorted({parts[0] for parts, _ in files if len(parts) > 1})
    number = {name: i for i, name in enumerate(names)}
    splits = any(name.lower() in SPLIT_FOLDERS for name in names)
    loose = sum(len(parts) == 1 for parts, _ in files)
    sorted_by_class = len(names) > 1 and not splits and not loose
    if len(names) > 1 and not splits and loose:
        log.warning("%d images of %s lie beside its folders, which therefore are no classes.", loose, what)
    return [ImageEntry(e.name, e.stamp, e.read, number[parts[0]] if sorted_by_class else -1) for parts, e in files]


def _headers(entries: list[ImageEntry], background: str) -> tuple[set[tuple[int, int]], bool]:
    """Sizes (height, width) and whether all images are grey, from headers alone; the decoder reports broken images."""
    from PIL import Image

    from genlab.fields.decoding import colour_of

    coloured = len(set(colour_of(background))) > 1
    sizes, grey = set(), True
    for entry in entries:
        try:
            with Image.open(io.BytesIO(entry.read())) as image:
                turned = image.getexif().get(0x0112, 1) >= 5  # the EXIF orientation swaps height and width
                sizes.add((image.width, image.height) if turned else (image.height, image.width))
                grey = grey and (image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16"))
                grey = grey and not (coloured and image.has_transparency_data)
        except Exception:  # PIL raises many types; `prepare_images` reports all broken images
            log.debug("%s cannot be read", entry.name)
    return sizes, grey


def _open_array(key: str, path: Path) -> _Source:
    import numpy as np

    from genlab.data.store import free_memory

    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(info.file_size for info in archive.infolist())
            if unpacked > free_memory():
                raise UserError(f"{key}={path} unpacks to {unpacked} bytes, more than the free memory.")
        loaded: Any = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise UserError(f"{key}={path} holds one array without a name; {LAYOUT}.")
        with loaded:
            names = sorted(loaded.files)
            if "x" not in names:
                listed = ", ".join(f"`{name}`" for name in names[:5]) or "nothing"
                raise UserError(f"{key}={path} holds {listed}, but no array `x`; {LAYOUT}.")
            x = loaded["x"]
            y = loaded["y"] if "y" in names else None
    except UserError:
        raise
    except Exception as error:  # zip, zlib, header and pickle errors
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"{key}={path} cannot be read ({reason}); {LAYOUT}.") from error
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] not in (1, 3) or 0 in x.shape:
        raise UserError(f"{key}={path} holds `x` as {x.dtype} of shape {list(x.shape)}; {LAYOUT}.")
    if y is not None and (y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer)):
        raise UserError(f"{key}={path} holds `y` as {y.dtype} of shape {list(y.shape)}; {LAYOUT}.")
    return _Source(path, key, array=x, labels=y, sizes={tuple(x.shape[1:3])}, grey=x.shape[3] == 1)


def _load(
    source: _Source, size: tuple[int, int], channels: int, skip_broken: bool, background: str, bits: int | None
) -> tuple[ImageSet, int | None]:
    """An image set, and the bits of the values in its 16-bit images; `bits` if there are none."""
    import numpy as np
    import torch

    from genlab.data.store import array_digest, prepare_images, resize_images, warn_of_equal

    if source.entries is not None:
        how: dict[str, Any] = {"skip_broken": skip_broken, "background": background, "bits": bits}
        try:
            store, bits = prepare_images(source.entries, _readable(size), channels, **how)
        except UserError as error:
            raise UserError(f"{source.key}={source.path}: {_without_data(error)}") from error
        x, y = store.gather(torch.arange(len(store))), store.y
    else:
        assert source.array is not None
        array = source.array.transpose(0, 3, 1, 2)
        if channels == 3 and array.shape[1] == 1:
            array = np.repeat(array, 3, axis=1)
        store = resize_images(np.ascontiguousarray(array), size, channels)
        x = store.gather(torch.arange(len(store)))
        y = None if source.labels is None else torch.from_numpy(source.labels.astype(np.int64))
    if y is not None and not bool((y >= 0).any()):
        y = None
    warn_of_equal(f"{source.key}={source.path}", store)
    return ImageSet(str(source.path), x, y, array_digest(x.numpy())), bits


def _without_data(error: UserError) -> UserError:
    """The same mistake, with the keys of this command."""
    return UserError(re.sub(r"\bdata\.(?:image_)?(size|skip_broken|background|bits)\b", r"\1", str(error)))


def _readable(size: tuple[int, int]) -> tuple[int, int]:
    return size if min(size) > 0 else (1, 1)  # no image could be read: the decoder reports it


def _as_size(size: int | list[int]) -> tuple[int, int]:
    from genlab.data.module import _as_size as checked

    try:
        return checked(size)
    except UserError as error:
        raise _without_data(error) from error


def _listed(sizes: set[tuple[int, int]]) -> str:
    shown = ", ".join(f"{h}x{w}" for h, w in sorted(sizes)[:NAMED])
    return shown + (f" and {len(sizes) - NAMED} more" if len(sizes) > NAMED else "")
