"""Image data sets: digits, files in folders and zips, torchvision's sets, MNIST-10k."""

import gzip
import io
import logging
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genlab.data import decode as decode_module
from genlab.data.celeba import CelebA
from genlab.data.folders import ImageFolder, ImageZip
from genlab.data.images import CIFAR10, MNIST, USPS, Digits, FashionMNIST, MNIST10k, read_idx
from genlab.data.omniglot import OmniglotSmall
from genlab.data.store import ArrayStore
from genlab.errors import UserError

SMALL = {"image_size": 8, "channels": 3, "batch_size": 4}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path_factory.mktemp("cache")))


def save(path: Path, seed: int, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.RandomState(seed).randint(0, 256, (*size, 3)).astype(np.uint8)).save(path)


def make(root: Path, layout: dict[str, int]) -> Path:
    """A folder with so many images in each sub-folder."""
    seed = 0
    for folder, count in layout.items():
        for k in range(count):
            save(root / folder / f"{k}.png", seed)
            seed += 1
    return root


def packed(root: Path, wrapper: str = "") -> Path:
    path = root.parent / f"{root.name}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                archive.write(file, Path(wrapper) / file.relative_to(root))
    return path


def source(kind: str, root: Path, **arguments) -> ImageFolder | ImageZip:
    if kind == "folder":
        return ImageFolder(root=root, **{**SMALL, **arguments})
    return ImageZip(root=packed(root, "wrapped" if kind == "wrapped zip" else ""), **{**SMALL, **arguments})


def rows(data, split: str) -> set[bytes]:
    store = data.split(split)
    return {image.numpy().tobytes() for image in store.gather(torch.arange(len(store)))}


# --- Digits -----------------------------------------------------------------------------------------------------------


def test_digits_splits_are_fixed_disjoint_and_whole():
    data = Digits(batch_size=64, image_size=8, channels=1, num_classes=10)
    stores = [data.split(name) for name in ("train", "val", "test")]
    assert [len(s) for s in stores] == [1258, 180, 359]
    assert all(s.values("x").shape[1:] == (1, 8, 8) and s.values("x").dtype == torch.uint8 for s in stores)
    from sklearn.datasets import load_digits

    raw = load_digits()
    expected = np.rint(raw.images * 255 / 16).astype(np.uint8)
    assert (expected.min(), expected.max()) == (0, 255)
    ours = torch.cat([torch.cat((s.values("x").flatten(1), s.y[:, None].to(torch.uint8)), 1) for s in stores]).numpy()
    theirs = np.concatenate((expected.reshape(1797, 64), raw.target[:, None].astype(np.uint8)), 1)
    # As multisets of (image, label): each image is in exactly one split.
    np.testing.assert_array_equal(np.array(sorted(ours.tolist())), np.array(sorted(theirs.tolist())))
    other = Digits(batch_size=32, image_size=8, channels=1, seed=5)
    assert other.describe()["fingerprint"] == data.describe()["fingerprint"]  # whatever the seed
    assert stores[2].y[:10].tolist() == other.split("test").y[:10].tolist()


def test_digits_can_be_enlarged_and_coloured():
    data = Digits(batch_size=4, image_size=[16, 12], channels=3)
    assert data.spec.shape == (3, 16, 12)
    batch = next(iter(data.train_dataloader()))
    assert batch.x.shape == (4, 3, 16, 12)
    assert -1 <= batch.x.min() < -0.5 < 0.5 < batch.x.max() <= 1
    torch.testing.assert_close(batch.x[:, 0], batch.x[:, 2])


# --- Folders and zips -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "zip", "wrapped zip"])
def test_first_level_folders_are_classes(kind, tmp_path):
    make(tmp_path / "pets", {"dog/big": 7, "cat": 6, ".hidden": 3})
    save(tmp_path / "pets" / "cat" / ".thumb.png", 99)
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("no image")
    data = source(kind, tmp_path / "pets")
    assert data.spec.num_classes is None  # before anything was read
    data.prepare_data()
    assert data.spec.num_classes == 2
    assert data.spec.class_names == ("cat", "dog")
    assert {name: len(data.split(name)) for name in ("train", "val", "test")} == {"train": 11, "val": 1, "test": 1}
    everything = torch.cat([data.split(name).y for name in ("train", "val", "test")])
    assert everything.bincount().tolist() == [6, 7]
    assert len(rows(data, "train") | rows(data, "val") | rows(data, "test")) == 13
    assert data.name == f"{kind.split()[-1]}-pets"
    # The label belongs to the image.
    train = data.split("train")
    dogs = {np.array(Image.open(p)).transpose(2, 0, 1).tobytes() for p in (tmp_path / "pets/dog/big").iterdir()}
    for x, y in zip(train.values("x"), train.y, strict=True):
        assert (x.numpy().tobytes() in dogs) == (y == 1)


@pytest.mark.parametrize("kind", ["folder", "zip", "wrapped zip"])
@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_official_splits_are_kept(kind, val, tmp_path, caplog):
    make(tmp_path / "set", {"train/a": 5, "train/b": 4, f"{val}/a": 2, "test/b": 3, "extra": 2})
    with caplog.at_level(logging.WARNING, logger="genlab"):
        data = source(kind, tmp_path / "set", num_classes=2)
        assert [len(data.split(name)) for name in ("train", "val", "test")] == [9, 2, 3]
    assert "2 images" in caplog.text
    assert data.split("train").y.tolist() == [0] * 5 + [1] * 4
    assert data.split("val").y.tolist() == [0, 0]
    assert data.split("test").y.tolist() == [1, 1, 1]


def test_missing_official_splits_are_cut_off_the_training_part(tmp_path):
    make(tmp_path / "set", {"train": 20, "test": 4})
    data = source("folder", tmp_path / "set")
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [18, 2, 4]
    official = {np.array(Image.open(p)).transpose(2, 0, 1).tobytes() for p in (tmp_path / "set/test").iterdir()}
    assert rows(data, "test") == official
    assert not rows(data, "val") & (rows(data, "train") | rows(data, "test"))
    assert data.split("train").y is None


def test_folder_and_zip_hold_the_same(tmp_path):
    make(tmp_path / "set", {"a": 9, "b/c": 8})
    prints = [source(kind, tmp_path / "set").describe()["fingerprint"] for kind in ("folder", "zip", "wrapped zip")]
    assert prints[0] == prints[1] == prints[2]


def test_flat_folders_and_single_classes_have_no_labels(tmp_path):
    assert source("folder", make(tmp_path / "flat", {".": 5})).split("train").y is None
    data = source("folder", make(tmp_path / "one", {"cats": 5}))
    assert data.split("train").y is None
    assert data.spec.num_classes is None
    with pytest.raises(UserError, match="no labels.*num_classes=3.*null"):
        source("folder", tmp_path / "one", num_classes=3).setup()


def test_labels_can_be_switched_off_and_must_agree(tmp_path):
    root = make(tmp_path / "set", {"a": 5, "b": 5})
    plain = source("folder", root, labels=False, num_classes=2)
    assert plain.split("train").y is None
    assert plain.spec.num_classes is None
    assert next(iter(plain.train_dataloader())).y is None
    with pytest.raises(UserError, match="has 2 classes, got data.num_classes=7; set it to 2"):
        source("folder", root, num_classes=7).setup()


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_broken_images_are_listed_or_skipped(kind, tmp_path):
    root = make(tmp_path / "set", {"a": 6, "b": 6})
    whole = (root / "a" / "3.png").read_bytes()
    (root / "a" / "3.png").write_bytes(whole[: len(whole) // 2])
    (root / "b" / "text.jpg").write_text("this is no image")
    with pytest.raises(UserError) as caught:
        source(kind, root).prepare_data()
    assert "2 of 13 images cannot be read: a/3.png (" in str(caught.value)
    assert "b/text.jpg (not an image)" in str(caught.value)
    data = source(kind, root, skip_broken=True)
    sizes = data.describe()["sizes"]
    assert sum(sizes.values()) == 11
    assert torch.cat([data.split(name).y for name in sizes]).bincount().tolist() == [5, 6]


def test_a_zip_member_with_a_wrong_checksum_is_broken(tmp_path):
    path = packed(make(tmp_path / "set", {"a": 5}))
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("a/2.png").header_offset + 60
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"1 of 5 images cannot be read: a/2.png"):
        ImageZip(root=path, **SMALL).setup()


def test_the_cache_serves_the_second_run_until_a_file_changes(tmp_path, monkeypatch):
    root = make(tmp_path / "set", {"a": 6, "b": 6})
    first = source("folder", root)
    first.prepare_data()
    decoded = []
    real = decode_module.read_image
    monkeypatch.setattr(decode_module, "read_image", lambda *a: decoded.append(1) or real(*a))
    assert source("folder", root).describe() == first.describe()
    assert decoded == []
    save(root / "a" / "0.png", 1234)
    os.utime(root / "a" / "0.png", (1, 1))
    assert source("folder", root).describe()["fingerprint"] != first.describe()["fingerprint"]
    assert len(decoded) == 12


def test_links_in_a_circle_end(tmp_path):
    root = make(tmp_path / "set", {"a": 4, "b": 4})
    (root / "a" / "up").symlink_to(root)
    assert sum(source("folder", root).describe()["sizes"].values()) == 8


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda t: ImageFolder(root=None, **SMALL), "data=folder needs data.root=PATH"),
        (lambda t: ImageZip(root=None, **SMALL), "data=zip needs data.root=PATH"),
        (lambda t: ImageFolder(root=t / "nowhere", **SMALL), "does not exist; set data.root"),
        (lambda t: ImageZip(root=t / "nowhere.zip", **SMALL), "does not exist; set data.root"),
        (lambda t: ImageFolder(root=t, **SMALL), "There are no images in"),
        (lambda t: ImageZip(root=t, **SMALL), "use data=folder"),
        (lambda t: ImageFolder(root=packed(make(t / "x", {"a": 3})), **SMALL), "use data=zip"),
        (lambda t: ImageFolder(root=make(t / "x", {"a": 2}), **SMALL), "2 samples, too few"),
        (lambda t: ImageFolder(root=t, download=True, **SMALL), "cannot be downloaded"),
        (lambda t: MNIST(root=t / "empty", **SMALL), "MNIST is not in .*data.download=true"),
        (lambda t: FashionMNIST(root=t / "empty", **SMALL), "Fashion-MNIST is not in .*data.download=true"),
        (lambda t: CIFAR10(root=t / "empty", **SMALL), "cifar-10-batches-py.*data.download=true"),
        (lambda t: CelebA(root=t / "empty", **SMALL), "img_align_celeba.zip.*data.download=true"),
        (lambda t: MNIST10k(root=t / "empty", **SMALL), "t10k-images-idx3-ubyte.gz.*set data.root"),
        (lambda t: MNIST(root=None, **SMALL), "set data.root=PATH"),
    ],
)
def test_what_is_missing_is_said_in_a_sentence(build, message, tmp_path):
    with pytest.raises(UserError, match=message):
        build(tmp_path).prepare_data()


def test_an_empty_and_a_false_zip_are_said_in_a_sentence(tmp_path):
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("readme.txt", "no image")
    with pytest.raises(UserError, match="There are no images in"):
        ImageZip(root=tmp_path / "empty.zip", **SMALL).setup()
    (tmp_path / "false.zip").write_text("no zip")
    with pytest.raises(UserError, match="not a readable zip"):
        ImageZip(root=tmp_path / "false.zip", **SMALL).setup()


# --- Known sets -------------------------------------------------------------------------------------------------------


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">I{array.ndim}I", 0x0800 | array.ndim, *array.shape)
    data = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_mnist(root: Path, prefix: str = "", end: str = "", name: str = "") -> dict[str, np.ndarray]:
    """MNIST's four files with 30 and 12 random images."""
    rng = np.random.RandomState(0)
    images = {"train": rng.randint(0, 256, (30, 28, 28)), "t10k": rng.randint(0, 256, (12, 28, 28))}
    for part, x in images.items():
        write_idx(root / name / f"{prefix}{part}-images-idx3-ubyte{end}", x)
        write_idx(root / name / f"{prefix}{part}-labels-idx1-ubyte{end}", np.arange(len(x)) % 10)
    return images


@pytest.mark.parametrize(
    ("kind", "where"),
    [(MNIST, ("", "", "MNIST/raw")), (MNIST, ("mnist-", ".gz")), (FashionMNIST, ("", ".gz")), (FashionMNIST, ("", ""))],
)
def test_mnist_and_its_heirs_are_found_as_people_have_them(kind, where, tmp_path):
    images = write_mnist(tmp_path, *where)
    data = kind(root=tmp_path, image_size=28, channels=1, batch_size=4)
    torch.testing.assert_close(data.split("test").values("x")[:, 0], torch.from_numpy(images["t10k"].astype(np.uint8)))


def test_rows_of_the_official_training_set_are_held_out(tmp_path):
    write_mnist(tmp_path)

    def splits(validation: int | None) -> dict[str, ArrayStore]:
        data = MNIST(root=tmp_path, image_size=28, channels=1, batch_size=4, validation=validation)
        return {split: data.split(split) for split in ("train", "val", "test")}

    sizes = {v: [len(store) for store in splits(v).values()] for v in (None, 3, 10, 0)}
    assert sizes == {None: [27, 3, 12], 3: [27, 3, 12], 10: [20, 10, 12], 0: [30, 3, 12]}
    assert splits(3)["train"].fingerprint() == splits(None)["train"].fingerprint()
    whole = splits(0)  # validation rows are some of those that are trained on
    rows = {x.numpy().tobytes() for x in whole["train"].values("x")}
    assert len(rows) == 30 and {x.numpy().tobytes() for x in whole["val"].values("x")} < rows
    with pytest.raises(UserError, match="data.validation must be a number of images, 0 or more, got -1"):
        splits(-1)
    with pytest.raises(UserError, match="too few to cut off val"):
        splits(30)


def test_usps_is_read_from_its_arrays(tmp_path):
    x = np.linspace(-1000, 1000, 30 * 256).astype(np.int16).reshape(30, 16, 16)
    y = np.arange(30) % 10
    np.savez(tmp_path / "usps.npz", train_images=x, train_labels=y, test_images=x[:5], test_labels=y[:5])
    data = USPS(root=tmp_path, image_size=16, channels=1, batch_size=4)
    assert data.describe()["sizes"] == {"train": 27, "val": 3, "test": 5}
    seen = data.stream().batch(0)
    stored = torch.from_numpy(x).float()[data.split("test").y.argsort()] / 1000  # y of the first five is their number
    test = data.batches("test", 5)
    torch.testing.assert_close(next(iter(test)).x[:, 0], stored, atol=0.5 / 127.5 + 1e-6, rtol=0)
    assert seen.x.min() >= -1 and seen.x.max() <= 1
    np.savez(tmp_path / "usps.npz", train_images=x, train_labels=y[:7], test_images=x[:5], test_labels=y[:5])
    with pytest.raises(UserError, match="images and labels in .*usps.npz do not fit together"):
        USPS(root=tmp_path, image_size=16, channels=1, batch_size=4).setup()
    (tmp_path / "usps.npz").write_bytes(b"no arrays")
    with pytest.raises(UserError, match="cannot be read as USPS"):
        USPS(root=tmp_path, image_size=16, channels=1, batch_size=4).setup()


def test_usps_is_read_from_torchvisions_files(tmp_path, monkeypatch):
    from torchvision import datasets

    class Fake:
        def __init__(self, root, train):
            self.data = np.full((20 if train else 5, 16, 16), 7, np.uint8)
            self.targets = [k % 10 for k in range(len(self.data))]

    monkeypatch.setattr(datasets, "USPS", Fake)
    data = USPS(root=tmp_path, image_size=16, channels=1, batch_size=4)
    assert data.describe()["sizes"] == {"train": 18, "val": 2, "test": 5} and data.split("test").y.tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_real_usps_and_mnist(shared_data):
    usps = USPS(root=shared_data, image_size=16, channels=1, batch_size=4)
    assert usps.describe()["sizes"] == {"train": 6562, "val": 729, "test": 2007}
    mnist = MNIST(root=shared_data, image_size=28, channels=1, batch_size=4, validation=5000)
    assert mnist.describe()["sizes"] == {"train": 55000, "val": 5000, "test": 10000}
    # LeCun's files are known: the first test digits are 7, 2, 1, 0, 4.
    assert mnist.split("test").y[:5].tolist() == [7, 2, 1, 0, 4]
    inks = [data.split("test").values("x").float().mean() / 255 for data in (mnist, usps)]
    assert 0.1 < inks[0] < 0.16 and 0.2 < inks[1] < 0.3  # bright ink on black in both


def test_mnist_as_torchvision_has_it(tmp_path):
    images = write_mnist(tmp_path, name="MNIST/raw")
    data = MNIST(root=tmp_path, image_size=28, channels=1, batch_size=4, num_classes=10)
    assert data.describe()["sizes"] == {"train": 27, "val": 3, "test": 12}
    torch.testing.assert_close(data.split("test").values("x")[:, 0], torch.from_numpy(images["t10k"].astype(np.uint8)))
    assert data.split("test").y.tolist() == [k % 10 for k in range(12)]
    larger = MNIST(root=tmp_path, image_size=32, channels=1, batch_size=4)
    assert larger.split("train").values("x").shape == (27, 1, 32, 32)


def test_cifar10_is_brought_to_channels_first(tmp_path, monkeypatch):
    from torchvision import datasets

    pixels = np.random.RandomState(0).randint(0, 256, (20, 32, 32, 3)).astype(np.uint8)

    class Fake:
        def __init__(self, root, train, download):
            self.data = pixels if train else pixels[:5]
            self.targets = [k % 10 for k in range(len(self.data))]

    monkeypatch.setattr(datasets, "CIFAR10", Fake)
    data = CIFAR10(root=tmp_path, image_size=32, channels=3, batch_size=4)
    np.testing.assert_array_equal(data.split("test").values("x").numpy(), pixels[:5].transpose(0, 3, 1, 2))
    assert data.describe()["sizes"] == {"train": 18, "val": 2, "test": 5}
    assert data.spec.class_names[3] == "cat"


def test_a_failed_download_is_a_sentence(tmp_path, monkeypatch):
    from torchvision import datasets

    def fail(*_, download=False, **__):
        raise OSError("Name or service not known") if download else RuntimeError("not found")

    for name, kind in {"MNIST": MNIST, "CIFAR10": CIFAR10, "USPS": USPS}.items():
        monkeypatch.setattr(datasets, name, fail)
        with pytest.raises(UserError, match="could not be downloaded.*Name or service not known.*by hand"):
            kind(root=tmp_path, download=True, **SMALL).prepare_data()


def test_files_that_are_there_are_not_fetched(tmp_path, monkeypatch):
    from torchvision import datasets

    write_mnist(tmp_path)
    monkeypatch.setattr(datasets, "MNIST", None)
    MNIST(root=tmp_path, download=True, image_size=28, channels=1, batch_size=4).prepare_data()


def test_mnist10k_from_the_official_files(shared_data):
    data = MNIST10k(root=shared_data, image_size=28, channels=1, batch_size=64, num_classes=10)
    stores = [data.split(name) for name in ("train", "val", "test")]
    assert [len(s) for s in stores] == [8000, 1000, 1000]
    counts = sum(s.y.bincount(minlength=10) for s in stores)
    assert counts.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]  # the official test set's
    assert data.describe()["name"] == "MNIST-10k"
    # The mean grey of the official test set is 0.1325 of white.
    mean = torch.cat([s.values("x").double().flatten() for s in stores]).mean() / 255
    assert abs(mean - 0.1325) < 5e-4


def test_omniglot_from_its_zip(shared_data):
    """A real zip, wrapped in one folder, with three levels: the alphabets are the classes."""
    data = ImageZip(root=shared_data / "omniglot-background-small1.zip", image_size=28, channels=1, batch_size=64)
    sizes = data.describe()["sizes"]
    assert sizes == {"train": 2176, "val": 272, "test": 272}
    assert data.spec.num_classes == len(data.spec.class_names) == 5
    assert data.spec.class_names[0] == "Balinese"
    x = data.split("train").values("x").double() / 255
    assert 0.9 < float(x.mean()) < 0.99  # black strokes on white


def test_omniglot_small_from_both_zips(shared_data):
    """White on black; the 1,000 drawings that both zips hold are there once, and none in two splits."""
    data = OmniglotSmall(root=shared_data, image_size=28, channels=1, batch_size=20, num_classes=8)
    stores = {name: data.split(name) for name in ("train", "val", "test")}
    assert {name: len(store) for name, store in stores.items()} == {"train": 3901, "val": 471, "test": 468}
    counts = sum(store.y.bincount(minlength=8) for store in stores.values())
    assert counts.tolist() == [480, 440, 480, 940, 800, 520, 840, 340]
    assert all((store.y.bincount(minlength=8) > 15).all() for store in stores.values())
    x = stores["train"].values("x").double() / 255
    assert 0.03 < x.mean() < 0.15 and x[:, :, 0].mean() < 0.05
    rows = [{row.numpy().tobytes() for row in store.gather(torch.arange(len(store)))} for store in stores.values()]
    assert not rows[0] & rows[1] and not rows[0] & rows[2] and not rows[1] & rows[2]
    dynamic = OmniglotSmall(root=shared_data, image_size=28, channels=1, batch_size=20, binarize="dynamic")
    assert dynamic.split("test").values("x").unique().tolist() == [0, 255]
    assert dynamic.stream().batch(0).x.unique().tolist() == [-1, 1]


def omniglot_zips(folder, names=("omniglot-background-small1.zip", "omniglot-background-small2.zip"), alphabet="Greek"):
    """Two small zips: 60 drawings each, of which the second has 30 of the first's."""
    for start, name in zip((0, 30), names, strict=True):
        with zipfile.ZipFile(folder / name, "w") as archive:
            for i in range(start, start + 60):
                picture = io.BytesIO()
                black = np.arange(105 * 105).reshape(105, 105) % (i + 2) == 0
                Image.fromarray(np.where(black, 0, 255).astype(np.uint8)).save(picture, "PNG")
                archive.writestr(f"images_background/{alphabet}/character{i % 4:02}/{i:04}_01.png", picture.getvalue())


def test_omniglot_small_splits_by_name(tmp_path):
    """The same drawing lies in the same split, whatever else is in the zips."""
    omniglot_zips(tmp_path)
    data = OmniglotSmall(root=tmp_path, image_size=28, channels=1, batch_size=4)
    assert sum(data.describe()["sizes"].values()) == 90
    assert data.spec.class_names[2] == "Greek" and set(data.split("train").y.tolist()) == {2}
    other = tmp_path / "other"
    other.mkdir()
    omniglot_zips(other, ("images_background_small2.zip", "images_background_small1.zip"))
    again = OmniglotSmall(root=other, image_size=28, channels=1, batch_size=4)
    assert again.describe()["fingerprint"] == data.describe()["fingerprint"]


def test_omniglot_small_mistakes(tmp_path):
    made = {"image_size": 28, "channels": 1, "batch_size": 4}
    for root, words in ((None, "set data.root=PATH"), (tmp_path, "expected omniglot-background-small1.zip")):
        with pytest.raises(UserError, match=words):
            OmniglotSmall(root=root, **made).setup()
    with pytest.raises(UserError, match="cannot be downloaded"):
        OmniglotSmall(root=tmp_path, download=True, **made).prepare_data()
    omniglot_zips(tmp_path, alphabet="Klingon")
    with pytest.raises(UserError, match="an alphabet 'Klingon'"):
        OmniglotSmall(root=tmp_path, **made).setup()
    (tmp_path / "omniglot-background-small2.zip").write_bytes(b"no zip")
    with pytest.raises(UserError, match="not a readable zip"):
        OmniglotSmall(root=tmp_path, **made).setup()


@pytest.mark.parametrize("name", ["t10k-{}-ubyte", "t10k-{}-ubyte.gz", "mnist-t10k-{}-ubyte.gz"])
def test_mnist10k_accepts_the_usual_names(name, tmp_path):
    x = np.random.RandomState(0).randint(0, 256, (50, 28, 28))
    write_idx(tmp_path / name.format("images-idx3"), x)
    write_idx(tmp_path / name.format("labels-idx1"), np.arange(50) % 10)
    data = MNIST10k(root=tmp_path, image_size=28, channels=1, batch_size=5)
    assert data.describe()["sizes"] == {"train": 40, "val": 5, "test": 5}
    with pytest.raises(UserError, match="cannot be downloaded"):
        MNIST10k(root=tmp_path, download=True, **SMALL).prepare_data()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\x02ab", "not an IDX file"),  # floats
        (b"\0\0\x08\x01\0\0\0\x03ab", "cut off"),
        (b"\0\0\x08\x01\0\0\0\x01ab", "longer"),
        (b"\0\0\x08\x02\xff\xff\xff\xff\xff\xff\xff\xff", "claims"),
        (b"\0\0\x08\x02\0\0", "cut off"),
    ],
)
def test_idx_files_are_read_with_suspicion(data, message, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_idx(path)
    packed_path = tmp_path / "x.gz"
    packed_path.write_bytes(gzip.compress(data)[:-6])
    with pytest.raises(UserError, match="cannot be read"):
        read_idx(packed_path)
