"""Pictures of every odd sort: more than 8 bits, floating point, transparency, folders one level too high, links."""

import io
import logging
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from genlab.config.composition import compose
from genlab.data import decode as decode_module
from genlab.data.folders import ImageFolder, ImageZip, PairedFolders, file_entry
from genlab.errors import UserError
from genlab.fields.decoding import BITS, bits_for, colour_of, decode_image
from genlab.fields.image import Image as ImageField
from genlab.fields.video import Video

COMMON = {"image_size": 4, "channels": 3, "batch_size": 4}
GREY = {**COMMON, "channels": 1}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.INFO, logger="genlab")
    return caplog


def save(path, pixels, **options):
    """A picture of these pixels: uint8, uint16, int32 or float32 [H, W], or uint8 [H, W, C]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def flat(value, dtype, *channels):
    return np.full((4, 4, *channels), value, dtype)


def values(data, split="all"):
    """The first value of each image, sorted."""
    splits = ("train", "val", "test") if split == "all" else (split,)
    return sorted(v for s in splits for v in data.split(s).values("x")[:, 0, 0, 0].tolist())


def colour_png(value):
    """A png with 16 bits a colour, which PIL reads but does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + flat(value, ">u2", 3)[0].tobytes() for _ in range(4))
    head = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# --- More than 8 bits -------------------------------------------------------------------------------------------------


def test_floats_from_0_to_1_are_black_to_white(tmp_path):
    for k in range(6):
        save(tmp_path / f"{k}.tif", flat(k / 5, np.float32))
    assert values(ImageFolder(root=tmp_path, **GREY)) == [0, 51, 102, 153, 204, 255]


@pytest.mark.parametrize(("value", "came"), [(1.5, "0 to 1.5"), (-0.1, "-0.1 to 0"), (float("nan"), "nan")])
def test_other_floats_are_refused_by_name(value, came, tmp_path):
    for k in range(6):
        pixels = flat(0, np.float32)
        pixels[1, 1] = value if k == 3 else 1
        save(tmp_path / f"{k}.tif", pixels)
    with pytest.raises(UserError, match=rf"1 of 6 images cannot be read: 3.tif \(floating-point pixels from {came}"):
        ImageFolder(root=tmp_path, **GREY).setup()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_whole_numbers_are_scaled_by_the_bits_of_the_largest_of_all(bits, dtype, tmp_path, told):
    """One image alone needs fewer bits and is scaled like the others; 8-bit images beside them are as they were."""
    largest = 2**bits - 1
    form = "png" if dtype == np.uint16 else "tif"
    for k, value in enumerate((0, largest // 8, largest // 2, largest)):
        save(tmp_path / f"{k}.{form}", flat(value, dtype))
    save(tmp_path / "plain.png", flat(7, np.uint8))
    data = ImageFolder(root=tmp_path, **GREY)
    assert values(data) == sorted([0, 31, 127, 255, 7])
    assert data.spec.x.bits == bits and f"their largest value needs {bits} bits" in told.text
    told.clear()
    again = ImageFolder(root=tmp_path, **GREY)  # from the cache
    assert values(again) == values(data) and again.spec == data.spec and f"needs {bits} bits" in told.text


def test_processes_measure_as_threads_do(tmp_path, monkeypatch):
    """A chunk as a process reads it, in this one: the rows, what is broken, and the largest values."""
    for k in range(6):
        save(tmp_path / f"{k}.png", flat(100 * k if k % 2 else k, np.uint16 if k % 2 else np.uint8))
    (tmp_path / "3.png").write_bytes(b"no image")
    entries = [file_entry(tmp_path, path)[1] for path in sorted(tmp_path.iterdir())]
    monkeypatch.setattr(decode_module, "_job", (entries, decode_module.Reading((4, 4), 1)), raising=False)
    start, rows, broken, largest = decode_module._decode_chunk(0)
    array = np.zeros((6, 1, 4, 4), np.uint8)
    reading = decode_module.Reading((4, 4), 1)
    assert (broken, largest) == decode_module._decode(entries, array, 2, reading) == (broken, {1: 100, 5: 500})
    assert start == 0 and [position for position, _, _ in broken] == [3]
    np.testing.assert_array_equal(rows, array)


def test_bits_may_be_stated(tmp_path):
    for k in range(5):
        save(tmp_path / f"{k}.png", flat(1000 * k, np.uint16))
    assert values(ImageFolder(root=tmp_path, **GREY)) == [0, 62, 125, 187, 250]
    assert values(ImageFolder(root=tmp_path, bits=16, **GREY)) == [0, 3, 7, 11, 15]
    with pytest.raises(UserError, match=r"3 of 5 images .*4.png \(a pixel of 4000, more than the 1023 of data.bits=10"):
        ImageFolder(root=tmp_path, bits=10, **GREY).setup()
    with pytest.raises(UserError, match="data.bits must be 8, 10, 12, 14, 16 or null, got 9"):
        ImageFolder(root=tmp_path, bits=9, **GREY)
    assert [bits_for(value) for value in (0, 255, 256, 4095, 4096, 65535)] == [8, 8, 10, 12, 14, 16]


@pytest.mark.parametrize("value", [-1, 65536])
def test_whole_numbers_beyond_16_bits_are_refused_by_name(value, tmp_path):
    for k in range(5):
        save(tmp_path / f"{k}.tif", flat(value if k == 2 else 7, np.int32))
    with pytest.raises(UserError, match=rf"1 of 5 images .*2.tif \(pixels from {value} to {value}; .*0 to 65535\)"):
        ImageFolder(root=tmp_path, **GREY).setup()


def test_colours_of_16_bits_keep_their_upper_byte_and_those_of_12_are_refused(tmp_path):
    for k in range(5):
        (tmp_path / f"{k}.png").write_bytes(colour_png(256 * k))
    with pytest.raises(UserError, match=r"5 of 5 images cannot be read: 0.png \(colours of 12 bits in 16"):
        ImageFolder(root=tmp_path, **COMMON).setup()
    (tmp_path / "5.png").write_bytes(colour_png(65535))
    assert values(ImageFolder(root=tmp_path, **COMMON)) == [0, 1, 2, 3, 4, 255]


def test_a_tiff_of_floating_point_colours_is_refused_by_name(tmp_path):
    """Pillow reads no such file; it is an image all the same."""
    tags = {256: 4, 257: 4, 258: 134, 259: 1, 262: 2, 273: 146, 277: 3, 278: 4, 279: 192, 339: 140}
    counts = {258: 3, 339: 3}  # bits, and the kind of number, of each colour
    rows = b"".join(struct.pack("<HHII", tag, 3, counts.get(tag, 1), value) for tag, value in tags.items())
    ends = struct.pack("<I6H", 0, 32, 32, 32, 3, 3, 3)
    content = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + rows + ends
    assert len(content) == 146
    for k in range(5):
        (tmp_path / f"{k}.tif").write_bytes(content + flat(0.5, "<f4", 3).tobytes())
    with pytest.raises(UserError, match=r"5 of 5 .*0.tif \(a TIFF that is damaged, or of a kind that Pillow does not"):
        ImageFolder(root=tmp_path, **COMMON).setup()


def test_a_bitmap_of_5_bits_a_colour_has_no_16(tmp_path):
    """PIL calls its layout BGR;15 or BGR;16."""
    pixels = struct.pack("<16H", *[0x7FFF] * 16)
    head = struct.pack(
        "<2sIHHIIiiHHIIiiII", b"BM", 54 + len(pixels), 0, 0, 54, 40, 4, 4, 1, 16, 0, len(pixels), 0, 0, 0, 0
    )
    assert decode_image(head + pixels, (4, 4), 3).min() == 255
    for k in range(5):
        (tmp_path / f"{k}.bmp").write_bytes(head + pixels)
    data = ImageFolder(root=tmp_path, **COMMON)
    assert values(data) == [255] * 5 and data.spec.x.bits is None


def test_a_picture_that_is_typed_is_scaled_as_in_training(tmp_path):
    save(tmp_path / "dark.png", flat(500, np.uint16))
    stored = [
        int(field.stored(field.parse(str(tmp_path / "dark.png"), 1))[0, 0, 0, 0])
        for field in (ImageField((1, 4, 4)), ImageField((1, 4, 4), bits=12))
    ]
    assert stored == [500 >> 2, 500 >> 4]


def test_columns_of_pictures_are_scaled_by_all_of_their_files(tmp_path):
    for k in range(10):
        save(tmp_path / "sharp" / f"{k}.png", flat(25 * k, np.uint8, 3))
        save(tmp_path / "deep" / f"{k}.png", flat(400 * k, np.uint16))
    column = {"c": {"kind": "image", "shape": [1, 4, 4]}}
    for _ in range(2):  # decoded, then from the cache
        data = PairedFolders(root=tmp_path, folders={"x": "sharp", "c": "deep"}, columns=column, **COMMON)
        store = data.split("train")
        assert (store.values("c")[:, 0, 0, 0] == store.values("x")[:, 0, 0, 0].long() * 16 >> 4).all()
        assert data.spec.fields["c"].bits == 12 and data.spec.x.bits is None
    (tmp_path / "rows.csv").write_text("file,c\n" + "".join(f"sharp/{k}.png,deep/{k}.png\n" for k in range(10)))
    tabled = ImageFolder(root=tmp_path, columns=column, **COMMON)
    store = tabled.split("train")
    assert torch.equal(store.values("c")[:, 0], store.values("x")[:, 0]) and tabled.spec.fields["c"].bits == 12


# --- Transparency -----------------------------------------------------------------------------------------------------


def drawing(alpha=0):
    """Black on transparent: the left half is drawn; what is hidden is black as well."""
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:, :2, 3] = 255
    pixels[:, 2:, 3] = alpha
    return pixels


BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "#ff8000": (255, 128, 0)}


@pytest.mark.parametrize("background", [None, *BACKGROUNDS])
@pytest.mark.parametrize("kind", ["folder", "zip", "pairs", "table"])
def test_the_background_shows_under_transparency(kind, background, tmp_path):
    """White unless another is stated, in whatever holds the pictures."""
    column = {"c": {"kind": "image", "shape": [3, 4, 4]}}
    for k in range(5):
        save(tmp_path / "set" / "x" / f"{k}.png", drawing())
        save(tmp_path / "set" / "c" / f"{k}.png", drawing())
    more = {**COMMON, "root": tmp_path / "set", **({} if background is None else {"background": background})}
    if kind == "folder":
        data = ImageFolder(**more)
    elif kind == "zip":
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            for file in (tmp_path / "set" / "x").iterdir():
                archive.write(file, file.name)
        data = ImageZip(**{**more, "root": tmp_path / "set.zip"})
    elif kind == "pairs":
        data = PairedFolders(folders={"x": "x", "c": "c"}, columns=column, **more)
    else:
        (tmp_path / "set" / "rows.csv").write_text("file,c\n" + "".join(f"x/{k}.png,c/{k}.png\n" for k in range(5)))
        data = ImageFolder(columns=column, **more)
    colour = torch.tensor(BACKGROUNDS[background or "white"], dtype=torch.uint8)
    for name in ("x", "c") if kind in ("pairs", "table") else ("x",):
        stored = data.split("train").values(name)
        assert not stored[..., :2].any()
        assert (stored[..., 2:] == colour.view(3, 1, 1)).all()
    field = data.spec.x  # a picture that is typed for a run
    assert torch.equal(
        field.stored(field.parse(str(tmp_path / "set" / "x" / "0.png"), 1)), data.split("test").values("x")
    )


def encoded(pixels, mode=None, form="png", **options):
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["LA", "PA", "P", "L", "gif"])
def test_every_sort_of_transparency_shows_the_background(mode):
    if mode in ("P", "L", "gif"):  # one value of the pixels is transparent
        pixels = np.repeat(np.array([[10, 200, 200, 10]], np.uint8), 4, axis=0)
        form = "gif" if mode == "gif" else "png"
        data = encoded(pixels, "P" if mode == "P" else None, form, transparency=200)
    else:
        data = encoded(drawing(), "LA" if mode == "LA" else None, "webp" if mode == "PA" else "png", lossless=True)
    white, black = (decode_image(data, (4, 4), 1, background)[0] for background in ("white", "black"))
    hidden = white != black
    assert hidden.sum() == 8 and (white[hidden] == 255).all() and (black[hidden] == 0).all()


def test_half_transparent_pixels_are_mixed_and_opaque_ones_are_not_touched():
    rng = np.random.RandomState(0)
    pixels = rng.randint(0, 256, (8, 8, 4)).astype(np.uint8)
    pixels[..., 3] = 255
    np.testing.assert_array_equal(decode_image(encoded(pixels), (8, 8), 3), pixels[..., :3].transpose(2, 0, 1))
    pixels[0, 0] = (100, 0, 0, 51)  # a fifth
    mixed = decode_image(encoded(pixels), (8, 8), 3).copy()
    np.testing.assert_allclose(mixed[:, 0, 0], [224, 204, 204], atol=1)
    mixed[:, 0, 0] = pixels[0, 0, :3]
    np.testing.assert_array_equal(mixed, pixels[..., :3].transpose(2, 0, 1))


def test_frames_of_a_video_are_on_white(tmp_path):
    frame = Image.fromarray(np.repeat(np.array([[0, 1, 1, 0]], np.uint8), 4, axis=0), "P")
    frame.putpalette([90, 90, 90, 0, 0, 0])
    frame.save(tmp_path / "a.gif", save_all=True, append_images=[frame], transparency=1, disposal=2)
    field = Video((1, 3, 4, 4))
    assert field.stored(field.parse(str(tmp_path / "a.gif"), 1))[0, 0, 0, 0].tolist() == [90, 255, 255, 90]


@pytest.mark.parametrize("wrong", ["pink", "#12345", "#12345g", ""])
def test_other_backgrounds_are_refused(wrong, tmp_path):
    with pytest.raises(UserError, match=r"must be white, black or '#rrggbb', got .*Try data.background=white"):
        ImageFolder(root=tmp_path, background=wrong, **COMMON)
    assert colour_of("WHITE") == (255, 255, 255) and colour_of("#0A0b0C") == (10, 11, 12)


def test_a_background_can_be_typed():
    config = compose(["data=folder", "data.background=#ff8000", "data.bits=12"])
    assert config["data"]["background"] == "#ff8000" and config["data"]["bits"] == 12
    domains = compose(["data=unpaired_folders", "data.background=black"])["data"]["domains"]
    assert {domain["background"] for domain in domains.values()} == {"black"}


# --- Sets that hold nothing to learn ----------------------------------------------------------------------------------


def test_a_set_of_equal_images_is_warned_of(tmp_path, told):
    for k in range(5):
        save(tmp_path / "set" / f"{k}.png", drawing())
    assert values(ImageFolder(root=tmp_path / "set", background="black", **COMMON)) == [0] * 5
    assert "All 3 samples of folder-set are equal, and each of their pixels is 0" in told.text
    told.clear()
    ImageFolder(root=tmp_path / "set", **COMMON).setup()
    assert "All 3 samples of folder-set are equal: there is nothing to learn" in told.text
    told.clear()
    for k in range(5):
        save(tmp_path / "set" / f"{k}.png", flat(k, np.uint8, 3))
    ImageFolder(root=tmp_path / "set", **COMMON).setup()
    assert "equal" not in told.text


# --- Folders --------------------------------------------------------------------------------------------------------


def layout(root, **counts):
    """So many images in each folder; "." stands for the root, "__" for a level."""
    for at, (folder, count) in enumerate(counts.items()):
        for k in range(count):
            save(root / folder.replace("__", "/").replace("top", ".") / f"{k}.png", flat(10 * at + k, np.uint8, 3))
    return root


def test_classes_are_listed_with_their_numbers_and_loose_images_are_said(tmp_path, told):
    data = ImageFolder(root=layout(tmp_path / "pets", cat=4, dog=5, top=3), **COMMON)
    assert data.split("train") and data.spec.class_names == ("cat", "dog")
    assert "folder-pets has 2 classes: cat 4, dog 5." in told.text
    assert "3 of the 12 samples of folder-pets have no class" in told.text
    told.clear()
    ImageFolder(root=tmp_path / "pets", labels=False, **COMMON).setup()
    assert "class" not in told.text
    ImageFolder(root=layout(tmp_path / "split", train__a=4, train__b=4, test__a=2), **COMMON).setup()
    assert "a 6, b 4." in told.text and "no class" not in told.text
    told.clear()
    (tmp_path / "pets" / "rows.csv").write_text(
        "file,label\n" + "".join(f"cat/{k}.png,{'xy'[k % 2]}\n" for k in range(4))
    )
    ImageFolder(root=tmp_path / "pets", table="rows.csv", **COMMON).setup()
    assert "has 2 classes: x 2, y 2." in told.text and "cat" not in told.text.partition("has 2 classes")[2]


@pytest.mark.parametrize("split", [False, True])
def test_one_level_too_high_is_as_in_a_zip(split, tmp_path, told):
    counts = {"train__a": 4, "train__b": 4, "test__a": 2} if split else {"a": 5, "b": 5}
    right = ImageFolder(root=layout(tmp_path / "right", **counts), **COMMON)
    high = ImageFolder(root=layout(tmp_path / "high" / "outer" / "inner", **counts).parents[1], **COMMON)
    assert high.describe()["fingerprint"] == right.describe()["fingerprint"]
    assert high.spec.class_names == ("a", "b")
    assert f"All files of {tmp_path / 'high'} lie in outer/inner" in told.text
    assert told.text.count("lie in") == 1
    single = ImageFolder(root=layout(tmp_path / "single", train=5), **COMMON)  # the name of a split is no such level
    assert len(single.split("train")) == 3 and told.text.count("lie in") == 1


def test_domains_tables_and_pairs_one_level_too_high(tmp_path):
    counts = {"trainA": 4, "trainB": 5}
    layout(tmp_path / "domains" / "horses", **counts)
    sizes = [sum(ImageFolder(root=tmp_path / "domains", domain=d, **COMMON).describe()["sizes"].values()) for d in "AB"]
    assert sizes == [4, 5]
    column = {"c": {"kind": "image", "shape": [3, 4, 4]}}
    top = layout(tmp_path / "pairs" / "outer", photo=5, label=5)
    pairs = PairedFolders(root=tmp_path / "pairs", folders={"x": "photo", "c": "label"}, columns=column, **COMMON)
    assert (pairs.split("train").values("c") - pairs.split("train").values("x") == 10).all()
    (top / "rows.csv").write_text("file,size\n" + "".join(f"photo/{k}.png,{k}\n" for k in range(5)))
    table = ImageFolder(root=tmp_path / "pairs", columns={"size": {"kind": "points", "shape": [1]}}, **COMMON)
    assert torch.equal(table.split("train").values("size")[:, 0], table.split("train").values("x")[:, 0, 0, 0].float())


def test_links_that_lead_nowhere_are_no_broken_images(tmp_path, told):
    root = layout(tmp_path / "set", a=5, b=5)
    (root / "a" / "text.jpg").write_text("no image")
    for name in ("gone", "lost"):
        (root / "b" / f"{name}.png").symlink_to(tmp_path / "elsewhere" / f"{name}.png")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError) as caught:
        ImageFolder(root=root, **COMMON).setup()
    message = str(caught.value)
    assert message.startswith(
        "1 of 13 images cannot be read: a/text.jpg (not an image); "
        "2 of 13 images are links to files that are not there: b/gone.png; b/lost.png. "
    )
    assert f"1 links in {root} lead to nothing and are passed over, e.g. {root / 'c'}" in told.text
    assert sum(ImageFolder(root=root, skip_broken=True, **COMMON).describe()["sizes"].values()) == 10
    assert "1 of 13 images cannot be read" in told.text and "2 of 13 images are links" in told.text
