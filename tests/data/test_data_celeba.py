"""CelebA: official splits, parts of it, attributes."""

import logging
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from genlab.data.celeba import CelebA
from genlab.errors import UserError

SMALL = {"image_size": 8, "channels": 3, "batch_size": 4}
TWO = {"attributes": {"kind": "attributes", "shape": [2], "names": ["Smiling", "Bald"]}}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_celeba_takes_the_central_square_and_the_official_splits(kind, tmp_path):
    base = tmp_path / "celeba"
    base.mkdir()
    pixels = np.zeros((218, 178, 3), np.uint8)
    pixels[20:198] = 255  # the central 178 x 178
    (base / "img_align_celeba").mkdir()
    for k in range(6):
        Image.fromarray(pixels).save(base / "img_align_celeba" / f"{k:06}.png")
    lines = [f"{k:06}.png {min(2, k // 3)}" for k in range(6)]
    lines[5] = "000005.png 2"
    (base / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    if kind == "zip":
        with zipfile.ZipFile(base / "img_align_celeba.zip", "w") as archive:
            for path in sorted((base / "img_align_celeba").iterdir()):
                archive.write(path, f"img_align_celeba/{path.name}")
                path.unlink()
        (base / "img_align_celeba").rmdir()
    data = CelebA(root=tmp_path, image_size=16, channels=3, batch_size=2, labels=False)
    assert data.describe()["sizes"] == {"train": 3, "val": 2, "test": 1}
    assert int(data.split("train").values("x").min()) == 255
    (base / "list_eval_partition.txt").write_text("000009.png 0\n")
    with pytest.raises(UserError, match="1 of CelebA's images are not in .*000009.png"):
        CelebA(root=tmp_path, **SMALL).setup()


def part(root, n=60, folder="img"):
    """Pictures 000000.png, ... whose grey value is their number, of 20 people with three pictures each."""
    (root / folder).mkdir(parents=True)
    for k in range(n):
        Image.fromarray(np.full((8, 8, 3), k, np.uint8)).save(root / folder / f"{k:06}.png")
    (root / "identity_CelebA.txt").write_text("".join(f"{k:06}.png {100 + k % 20}\n" for k in range(202)))
    return root


def numbers(data, split):
    return data.split(split).values("x")[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("folder", ["img", "img_align_celeba", "celeba/img"])
def test_a_part_is_split_by_people(folder, tmp_path):
    base = tmp_path / "celeba" if folder.startswith("celeba") else tmp_path
    part(base, folder=folder.removeprefix("celeba/"))
    data = CelebA(root=tmp_path, partial=True, **SMALL)
    people = {split: {k % 20 for k in numbers(data, split)} for split in ("train", "val", "test")}
    assert sum(len(numbers(data, split)) for split in people) == 60
    assert not people["train"] & people["val"] and not (people["train"] | people["val"]) & people["test"]
    assert len(people["train"]) > 10
    assert data.describe()["name"] == "celeba-partial"


def test_a_further_picture_changes_no_split(tmp_path):
    small = CelebA(root=part(tmp_path / "a"), partial=True, **SMALL)
    large = CelebA(root=part(tmp_path / "b", 100), partial=True, **SMALL)
    for split in ("train", "val", "test"):
        assert set(numbers(small, split)) <= set(numbers(large, split))


def test_a_part_with_official_splits_keeps_them(tmp_path):
    part(tmp_path)
    (tmp_path / "list_eval_partition.txt").write_text("".join(f"{k:06}.png {k % 3}\n" for k in range(90)))
    data = CelebA(root=tmp_path, partial=True, **SMALL)
    assert numbers(data, "val") == list(range(1, 60, 3))
    with pytest.raises(UserError, match="30 of CelebA's images are not in .*data.partial=true"):
        CelebA(root=tmp_path, **SMALL).setup()
    (tmp_path / "list_eval_partition.txt").write_text("".join(f"{k:06}.png 0\n" for k in range(90)))
    assert {k % 20 for k in numbers(CelebA(root=tmp_path, partial=True, **SMALL), "val")} != set(range(20))  # by people


def test_without_people_a_warning(tmp_path, caplog):
    part(tmp_path)
    (tmp_path / "identity_CelebA.txt").unlink()
    with caplog.at_level(logging.WARNING, logger="genlab"):
        assert CelebA(root=tmp_path, partial=True, **SMALL).describe()["sizes"] == {"train": 48, "val": 6, "test": 6}
    assert "one person may be in two splits" in caplog.text


def attributes(root, n=60):
    """Bald are the even pictures, Smiling those that three divides."""
    rows = "".join(f"{k:06}.png {'1' if k % 2 == 0 else '-1'}  {'1' if k % 3 == 0 else '-1'}\n" for k in range(n))
    (root / "list_attr_celeba.txt").write_text(f"{n}\nBald Smiling\n{rows}")


def test_attributes_belong_to_their_pictures(tmp_path):
    attributes(part(tmp_path))
    (tmp_path / "img" / "000030.png").write_bytes(b"broken")
    data = CelebA(root=tmp_path, partial=True, columns=TWO, skip_broken=True, **SMALL)
    total = 0
    for split in ("train", "val", "test"):
        for k, row in zip(numbers(data, split), data.split(split).values("attributes").tolist(), strict=True):
            assert row == [int(k % 3 == 0), int(k % 2 == 0)]  # in the order of the column's names
            total += 1
    assert total == 59
    batch = data.stream().batch(0)
    assert batch["attributes"].dtype == torch.float32 and set(batch["attributes"].flatten().tolist()) <= {0.0, 1.0}
    assert data.spec.fields["attributes"].text(torch.tensor([[1.0, 0.0], [0.0, 0.0]])) == ["Smiling", "none"]


LISTS = {
    "no attributes": ("list_attr_celeba.txt", None, "attributes are not in .*put list_attr_celeba.txt there"),
    "another attribute": ("list_attr_celeba.txt", "60\nBald\n", "'Smiling' is no attribute of CelebA; they are Bald"),
    "a number": ("list_attr_celeba.txt", "1\nBald Smiling\n000000.png 1 2\n", "has the line '000000.png 1 2'"),
    "too few": ("list_attr_celeba.txt", "1\nBald Smiling\n000000.png 1 -1\n", "lacks 59 images, e.g. 000001.png"),
    "too few people": ("identity_CelebA.txt", "000000.png 1\n", "does not say who is in 59 images"),
    "no people": ("identity_CelebA.txt", "000000.png\n", "is not CelebA's list"),
}


@pytest.mark.parametrize(("name", "content", "message"), LISTS.values(), ids=LISTS)
def test_mistakes_in_lists_are_one_sentence(name, content, message, tmp_path):
    attributes(part(tmp_path))
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        CelebA(root=tmp_path, partial=True, columns=TWO, **SMALL).setup()


def test_ten_thousand_real_faces(unpacked):
    """Counts of the public lists: each person is in one split, and women and men smile about as often as in all."""
    root = unpacked("celeba-10k-89x109") / "celeba-10k"
    data = CelebA(root=root, partial=True, columns=TWO, **SMALL)
    sizes = data.describe()["sizes"]
    assert sum(sizes.values()) == 10_000 and all(900 < sizes[split] < 1100 for split in ("val", "test"))
    smiling = torch.cat([data.split(split).values("attributes")[:, 0] for split in sizes]).float().mean()
    assert 0.46 < smiling < 0.5  # 48.2 % of the whole set
