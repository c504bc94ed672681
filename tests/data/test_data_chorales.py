"""Piano rolls from JSON."""

import json

import pytest
import torch

from genlab.config.composition import compose
from genlab.config.instantiate import instantiate
from genlab.data.chorales import NAMES, Chorales
from genlab.errors import UserError

SPLITS = ("train", "val", "test")
PIECES = {
    "train": [[[60, 64, 67], [], [21, 108]], [[61]]],
    "valid": [[[66], [66]]],
    "test": [[[72, 72]]],  # a pitch of two voices
}


def write(path, pieces=PIECES):
    path.write_text(json.dumps(pieces))
    return path


def chorales(root, most=None, **arguments):
    return Chorales(root=root, **{"batch_size": 2, "columns": {"x": {"most": most}}, **arguments})


def notes(data, split):
    store = data.split(split)
    return data.spec.x.text(store.gather(torch.arange(len(store))))


def test_pitches_are_keys_of_a_piano(tmp_path):
    data = chorales(write(tmp_path / "bach.json"))
    assert notes(data, "train") == ["C4 E4 G4 | - | A0 C8", "C#4"]
    assert notes(data, "val") == ["F#4 | F#4"] and notes(data, "test") == ["C5"]
    flat = data.split("train").columns["x"].flat
    assert flat.dtype == torch.uint8 and flat.nonzero().tolist() == [
        [0, 39],
        [0, 43],
        [0, 46],
        [2, 0],
        [2, 87],
        [3, 40],
    ]
    assert len(NAMES) == 88 and data.spec.x.names == NAMES and data.spec.x.most == 3 and data.name == "chorales-bach"


def test_batches_are_padded_with_silence(tmp_path):
    data = chorales(write(tmp_path / "bach.json"))
    batch = data.stream().batch(0)
    x = batch["x"]
    assert x.values.shape == (2, 3, 88) and x.values.dtype == torch.float32 and "y" not in batch
    short = batch["index"].tolist().index(1)
    assert x.length[short] == 1 and x.values[short].sum() == 1 and not x.mask[short, 1:].any()


def test_a_folder_holds_one_file(tmp_path):
    write(tmp_path / "a.json")
    assert notes(chorales(tmp_path), "test") == ["C5"]
    write(tmp_path / "b.json")
    with pytest.raises(UserError, match="must hold one JSON file, and holds a.json, b.json; set data.root to it"):
        chorales(tmp_path).setup()


def test_missing_splits_are_cut_off_and_long_or_empty_pieces_left_out(tmp_path, caplog):
    pieces = [[[60 + i]] for i in range(20)] + [[[60]] * 5, []]
    data = chorales(write(tmp_path / "a.json", {"train": pieces, "names": ["not read"]}), most=4)
    assert {split: len(data.split(split)) for split in SPLITS} == {"train": 16, "val": 2, "test": 2}
    assert len({note for split in SPLITS for note in notes(data, split)}) == 20
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "1 of the 22 pieces of chorales-a have more than data.columns.x.most=4 steps and are left out."
    ]


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ({"test": []}, 'no "train" in it'),
        ([1], 'no "train" in it'),
        (
            {"train": [[[60]], [[60], [60, 20]]]},
            "step 1 of piece 1 of train holds 20, which is no whole number from 21",
        ),
        ({"train": [[], [[109]]]}, "step 0 of piece 1 of train holds 109"),
        ({"train": [[[60]]], "valid": [[[60.0]]]}, "step 0 of piece 0 of valid holds 60.0"),
        ({"train": [[["C4"]]]}, "step 0 of piece 0 of train holds 'C4'"),
        ({"train": [[60, 61]]}, "has no len"),
        ({"train": 3}, "not iterable"),
    ],
)
def test_other_files_are_refused(pieces, message, tmp_path):
    with pytest.raises(UserError, match=f"a.json cannot be read as chorales .*{message}.*pieces as lists of steps"):
        chorales(write(tmp_path / "a.json", pieces)).setup()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"root": None}, "chorales needs its files: set data.root=PATH to a JSON file of chorales, or its folder"),
        ({"root": "nowhere"}, "nowhere does not exist; set it to a JSON file"),
        ({"root": ""}, "must hold one JSON file, and holds none"),
        ({"root": "text"}, "text cannot be read as chorales .*Expected is"),
        ({"root": "text", "download": True}, "cannot be downloaded; set data.root=PATH"),
        ({"root": "empty"}, "chorales-empty in .* has no pieces for train"),
        ({"shape": [None, 12]}, r"samples of shape \[None, 88\], got data.shape=\[None, 12\]"),
    ],
)
def test_mistakes_are_said_in_a_sentence(arguments, message, tmp_path):
    (tmp_path / "text").write_text("no JSON")
    write(tmp_path / "empty", {"train": []})
    if arguments.get("root") is not None:
        arguments = {**arguments, "root": tmp_path / arguments["root"]}
    with pytest.raises(UserError, match=message):
        Chorales(**{"batch_size": 4, "root": tmp_path, **arguments}).prepare_data()


def test_the_chorales_of_bach(shared_data):
    path = shared_data / "jsb-chorales-quarter.json"
    if not path.is_file():
        pytest.skip(f"real data not found: {path}")
    data = instantiate(compose(["data=chorales", f"data.root={path}"])["data"])
    assert {split: len(data.split(split)) for split in SPLITS} == {"train": 229, "val": 76, "test": 77}
    assert notes(data, "test")[0].startswith("C5 E5 G5 C6 | C5 E5 G5 C6 | B4 D5 G5 D6")
    assert int(data.split("train").columns["x"].flat.sum(dim=1).max()) <= 4 + 1  # four voices, rarely one more
    assert data.spec.x.most == 160
