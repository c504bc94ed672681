"""Columns from tables beside images, and pairs of files in folders."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from genlab.data.folders import ImageFolder, PairedFolders
from genlab.errors import UserError

COMMON = {"image_size": 4, "channels": 3, "batch_size": 4}
CAPTION = {"kind": "tokens", "shape": [None]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path_factory.mktemp("cache")))


def save(path, value):
    """A picture of 4 x 4 whose pixels have one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Ten pictures, 0.png to 9.png, of the grey values 0 to 9."""
    for k in range(10):
        save(tmp_path / "images" / f"{k}.png", k)
    return tmp_path


def table(folder, *lines, name="rows.csv"):
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def made(folder, columns, **more):
    return ImageFolder(**{**COMMON, "root": folder, "columns": columns, **more})


def captions(data, split):
    """The grey values of a split's rows, and their captions."""
    store = data.split(split)
    batch = data.rows(split, ["caption"], torch.arange(len(store)))
    return store.values("x")[:, 0, 0, 0].tolist(), data.spec.fields["caption"].text(batch["caption"])


def test_each_row_is_a_sample_with_its_image(folder):
    table(folder, "image,caption", *(f"{k}.png,Number {k}, {word}." for k in range(10) for word in ("first", "second")))
    with pytest.raises(UserError, match="Row 2 of .*rows.csv has 3 cells, and the head has 2.*in quotes"):
        made(folder, {"caption": CAPTION}).setup()
    table(
        folder, "image,caption", *(f'{k}.png,"Number {k}, {word}."' for k in range(10) for word in ("first", "second"))
    )
    data = made(folder, {"caption": CAPTION})
    seen = {}
    for split, rows in {"train": 16, "val": 2, "test": 2}.items():
        grey, words = captions(data, split)
        assert len(grey) == rows
        seen[split] = set(grey)
        for value, text in zip(grey, words, strict=True):
            number = str(value) if split == "train" else "<unk>"  # numbers of other splits are not in the vocabulary
            assert text in (f"number {number} , first .", f"number {number} , second .")
        assert sorted(words)[0] != sorted(words)[1]  # both rows of an image are there
    assert not seen["train"] & seen["val"] and not seen["val"] & seen["test"]
    field = data.spec.fields["caption"]
    assert field.names[:4] == ("<unk>", ",", ".", "number")  # the most frequent first, equal ones by the alphabet
    assert (field.size, field.most) == (6 + 8, 5)
    batch = data.stream().batch(0)
    assert batch["caption"].values.shape == (4, 5) and batch.x.shape == (4, 3, 4, 4)


def test_a_vocabulary_has_a_size_and_a_caption_a_length(folder):
    table(folder, "file,caption", *(f"images/{k}.png,a a b number{k}" for k in range(10)))
    data = made(folder, {"caption": {**CAPTION, "size": 3, "most": 3}})
    assert data.split("train") and data.spec.fields["caption"].names == ("<unk>", "a", "b")
    assert captions(data, "test")[1] == ["a a b"]
    with pytest.raises(UserError, match="caption.size is 50, and folder.* has 11. Try data.columns.caption.size=11"):
        made(folder, {"caption": {**CAPTION, "size": 50}}).setup()


def test_official_splits_and_classes_come_from_folders_or_from_the_table(tmp_path):
    for k in range(4):
        save(tmp_path / ("train" if k < 3 else "test") / f"{k}.png", k)
    table(
        tmp_path,
        "path\tlabel\tsize",
        *(f"{k}.png\t{'cat' if k % 2 else 'dog'}\t{k / 4}" for k in range(4)),
        name="t.tsv",
    )
    data = made(tmp_path, {"size": {"kind": "points", "shape": [1]}})
    assert data.split("test").values("x")[:, 0, 0, 0].tolist() == [3]
    assert data.split("test").values("size").tolist() == [[0.75]]
    assert data.spec.class_names == ("cat", "dog") and data.split("test").y.tolist() == [0]


def test_attributes_have_a_column_each_or_one_for_all(folder):
    table(folder, "file,smiling,male", *(f"{k}.png,{k % 2},{int(k > 4)}" for k in range(10)))
    names = {"kind": "attributes", "shape": [2], "names": ["male", "smiling"]}
    data = made(folder, {"attributes": names})
    store = data.split("train")
    for x, row in zip(store.values("x")[:, 0, 0, 0].tolist(), store.values("attributes").tolist(), strict=True):
        assert row == [float(x > 4), float(x % 2)]
    table(folder, "file,attributes", *(f'{k}.png,"male: 0.5"' for k in range(10)))
    assert made(folder, {"attributes": names}).split("val").values("attributes").tolist() == [[0.5, 0.0]]


def test_a_cell_may_name_a_file(folder):
    for k in range(10):
        save(folder / "other" / f"{k}.png", 100 + k)
    table(folder, "file,c", *(f"images/{k}.png,other/{k}.png" for k in range(10)))
    data = made(folder, {"c": {"kind": "image", "shape": [3, 4, 4]}})
    for split in ("train", "val", "test"):
        store = data.split(split)
        assert torch.equal(store.values("c"), store.values("x") + 100)


def test_boxes_are_read_as_they_are_typed(folder):
    table(folder, "file,boxes", *(f'{k}.png,"[[cat, 0, 0, 0.5, {k / 10}]]"' for k in range(10)))
    data = made(folder, {"boxes": {"kind": "boxes", "shape": [2, 5], "names": ["cat"]}})
    store = data.split("train")
    torch.testing.assert_close(store.values("boxes")[:, 0, 4], store.values("x")[:, 0, 0, 0] / 10)
    assert (store.values("boxes")[:, 1, 0] == -1).all()


def test_images_without_a_row_are_left_out_and_counted(folder, caplog):
    table(folder, "file,caption", *(f"{k}.png,one" for k in range(7)))
    with caplog.at_level(logging.WARNING, logger="genlab"):
        data = made(folder, {"caption": CAPTION})
        assert sum(len(data.split(split)) for split in ("train", "val", "test")) == 7
    assert "3 images in" in caplog.text


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["name,caption", "1.png,x"], "has the columns name, caption; the one of the files must be called file or"),
        (
            ["file,words", *(f"{k}.png,x" for k in range(10))],
            "data.columns names caption, and the table .* has file, words",
        ),
        (["file,caption", "10.png,x"], "1 files of .* are not there, e.g. 10.png"),
        (["file,caption"], "needs a head and at least one row"),
        (["file,caption", *(f"{k}.png," for k in range(10))], "column caption .* has none"),
    ],
)
def test_mistakes_in_a_table_are_one_sentence(lines, message, folder):
    table(folder, *lines)
    with pytest.raises(UserError, match=message):
        made(folder, {"caption": CAPTION}).setup()


def test_the_table_is_found_or_named(folder):
    with pytest.raises(UserError, match="holds no csv, tsv or captions.txt. Choose one with data.table="):
        made(folder, {"caption": CAPTION}).setup()
    table(folder, "file,caption", *(f"{k}.png,a" for k in range(10)))
    table(folder, "file,caption", *(f"{k}.png,b" for k in range(10)), name="other.csv")
    with pytest.raises(UserError, match="holds other.csv, rows.csv"):
        made(folder, {"caption": CAPTION}).setup()
    data = made(folder, {"caption": CAPTION}, table="other.csv")
    assert captions(data, "test")[1] == ["b"]


def test_a_file_that_fits_two_is_refused(folder):
    save(folder / "more" / "1.png", 11)
    table(folder, "file,caption", "1.png,a")
    with pytest.raises(UserError, match=r"1.png of .* may be images/1.png or more/1.png: write its folders"):
        made(folder, {"caption": CAPTION}).setup()


def test_flips_are_refused_beside_captions(folder):
    table(folder, "file,caption", *(f"{k}.png,on the left" for k in range(10)))
    with pytest.raises(UserError, match="caption of kind tokens cannot be mirrored"):
        made(folder, {"caption": CAPTION}, flip=True).stream()


# --- Pairs ----------------------------------------------------------------------------------------------------------


def street(root, splits=("train", "val", "test"), n=3):
    for split in splits:
        for k in range(n):
            save(root / split / "photo" / f"{k}.jpg", 40 * (k % 3))
            (root / split / "label").mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4), k % 3, np.uint8)).save(root / split / "label" / f"{k}.png")
    return root


PAIRS = {**COMMON, "folders": {"x": "photo", "c": "label"}, "class_files": {"c": "classes.txt"}}
MAP = {"c": {"kind": "layout", "shape": [4, 4], "size": 3}}


def test_pairs_of_pictures_and_class_maps(tmp_path):
    street(tmp_path)
    (tmp_path / "classes.txt").write_text("0 sky\n1 road\n2 open car\n")
    data = PairedFolders(**PAIRS, columns=MAP, root=tmp_path)
    for split in ("train", "val", "test"):
        store = data.split(split)
        near = store.values("x").float().mean(dim=(1, 2, 3)) / 40
        assert torch.equal(near.round().to(torch.uint8), store.values("c")[:, 0, 0])
    assert data.spec.fields["c"].names == ("sky", "road", "open car")
    again = PairedFolders(**PAIRS, columns=MAP, root=tmp_path)  # from the cache
    assert torch.equal(again.split("train").values("c"), data.split("train").values("c"))
    plain = PairedFolders(**PAIRS, columns=MAP, root=street(tmp_path / "plain", [""], 10))
    assert plain.split("train").values("c").shape == (8, 4, 4)


def test_pairs_are_mirrored_together(tmp_path):
    street(tmp_path)
    for k in range(3):
        half = np.zeros((4, 4), np.uint8)
        half[:, 2:] = 1
        Image.fromarray(half).save(tmp_path / "train" / "label" / f"{k}.png")
        (tmp_path / "train" / "photo" / f"{k}.jpg").unlink()
        Image.fromarray(np.repeat(255 * half[..., None], 3, axis=2)).save(tmp_path / "train" / "photo" / f"{k}.png")
    data = PairedFolders(**PAIRS, columns=MAP, root=tmp_path, flip=True)
    batches = [data.stream().batch(i) for i in range(8)]
    assert {int(c[0, 0]) for b in batches for c in b["c"]} == {0, 1}  # mirrored and not
    for batch in batches:
        assert torch.equal((batch.x[:, 0] > 0).long(), batch["c"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: (t / "train" / "label" / "1.png").unlink(), "1 of the files .* train/1 is missing in label"),
        (lambda t: (t / "train" / "photo" / "1.jpg").unlink(), "1 of the files .* train/1 is missing in photo"),
        (lambda t: (t / "classes.txt").write_text("0 sky\n2 road\n"), "must be numbered 0, 1, 2"),
        (lambda t: (t / "classes.txt").write_text("sky\nroad\n"), "data.columns.c.size is 3, and pairs.* has 2"),
        (lambda t: save(t / "train" / "label" / "1.png", 1), "mode RGB; a class map is a palette"),
    ],
)
def test_mistakes_in_pairs_are_one_sentence(change, message, tmp_path):
    street(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        PairedFolders(**PAIRS, columns=MAP, root=tmp_path).setup()


def test_each_column_of_pairs_has_a_folder(tmp_path):
    with pytest.raises(UserError, match="data.folders names c, x, and data.columns with x x"):
        PairedFolders(**PAIRS, root=tmp_path)
    with pytest.raises(UserError, match="data.root must be a folder with photo/NAME and label/NAME"):
        PairedFolders(**PAIRS, columns=MAP, root=tmp_path / "none").setup()


# --- Real files -----------------------------------------------------------------------------------------------------


def test_captions_of_flickr(unpacked):
    root = unpacked("flickr8k-1000-96") / "flickr8k-1000"
    data = ImageFolder(
        root=root,
        image_size=32,
        channels=3,
        batch_size=4,
        labels=False,
        columns={"caption": {**CAPTION, "size": 1000, "most": 24}},
    )
    assert data.describe()["sizes"] == {"train": 4000, "val": 500, "test": 500}
    assert data.spec.fields["caption"].names[:3] == ("<unk>", "a", ".")


def test_streets_of_camvid(unpacked):
    root = unpacked("camvid-256x192") / "camvid"
    columns = {"c": {"kind": "layout", "shape": [24, 32], "size": 12}}
    data = PairedFolders(**{**PAIRS, "image_size": [24, 32]}, columns=columns, root=root)
    assert data.describe()["sizes"] == {"train": 367, "val": 101, "test": 233}
    maps = data.split("train").values("c")
    road = data.spec.fields["c"].names.index("Road")
    low, high = (part.eq(road).float().mean() for part in (maps[:, 12:], maps[:, :12]))
    assert low > 0.3 > 0.05 > high  # the road is below
