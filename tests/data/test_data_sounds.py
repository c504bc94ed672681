"""Wav files: reading, rates, splits and classes; the spoken digits."""

import wave

import numpy as np
import pytest
import torch

from genlab.config.composition import compose
from genlab.config.instantiate import instantiate
from genlab.data.sounds import SpokenDigits, WavFolder
from genlab.errors import UserError
from genlab.fields.wave import read_wav

SPLITS = ("train", "val", "test")


def warnings(caplog):
    return [record.message for record in caplog.records if record.levelname == "WARNING"]


def save(path, frames, rate=8000, channels=1, width=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(np.asarray(frames, {1: "u1", 2: "<i2", 4: "<i4"}[width]).tobytes())
    return path


def fill(root, folders, start=1):
    """So many sounds in each folder; sound number k is k times k."""
    for folder, count in folders.items():
        for _ in range(count):
            save(root / folder / f"{start:03}.wav", [start] * start)
            start += 1
    return root


def wavs(root, most=None, **arguments):
    arguments = {"batch_size": 4, "shape": [None], "columns": {"x": {"most": most}}, **arguments}
    return WavFolder(root=root, **arguments)


def stored(data, split):
    store = data.split(split)
    values = store.gather(torch.arange(len(store)))
    return [value[:length].tolist() for value, length in zip(values.values, values.length.tolist(), strict=True)]


# --- Files ------------------------------------------------------------------------------------------------------------


def test_samples_of_sixteen_and_eight_bits(tmp_path):
    whole = np.arange(-32768, 32768)
    sound, rate = read_wav(save(tmp_path / "a.wav", whole, rate=44100))
    assert sound.dtype == torch.int16 and rate == 44100 and sound.tolist() == whole.tolist()
    sound, _ = read_wav(save(tmp_path / "b.wav", np.arange(256), width=1))
    assert sound.tolist() == [256 * (v - 128) for v in range(256)]


def test_channels_are_averaged_without_overflow(tmp_path):
    frames = [[32767, 32767, 32767], [-32768, -32768, -32768], [30000, 30000, 0], [1, 0, 0], [1, 1, 0]]
    sound, _ = read_wav(save(tmp_path / "a.wav", frames, channels=3))
    assert sound.tolist() == [32767, -32768, 20000, 0, 1]


# --- Folders ----------------------------------------------------------------------------------------------------------


def test_batches_hold_the_sounds_in_one_to_minus_one(tmp_path):
    data = wavs(fill(tmp_path / "set", {"train": 5, "valid": 2, "test": 1}))
    batch = data.stream().batch(0)
    x = batch["x"]
    assert stored(data, "train") == [[k] * k for k in range(1, 6)] and stored(data, "test") == [[8] * 8]
    for row, i in enumerate(batch["index"].tolist()):
        expected = [(i + 1) / 32768] * (i + 1) + [0] * (x.values.shape[1] - i - 1)
        assert x.values[row].tolist() == expected and int(x.length[row]) == i + 1
    assert data.spec.x.rate == 8000 and data.spec.x.most == 8 and data.name == "wav-set" and "y" not in batch


def test_folders_are_splits_and_classes(tmp_path, caplog):
    folders = {"train/dog": 2, "train/cat/big": 3, "val/cat": 1, "test/dog": 1, "more": 1, ".cache": 4}
    root = fill(tmp_path / "set", folders)
    save(root / "train" / "cat" / ".hidden.wav", [1])
    (root / "train" / "cat" / "notes.txt").write_text("no sound")
    (root / "train" / "dog" / "002.wav").rename(root / "train" / "dog" / "002.WAV")
    data = wavs(root, num_classes=2, num_labelled=2)
    assert data.split("train").y.tolist() == [0, 0, 0, 1, 1] and data.split("test").y.tolist() == [1]
    assert stored(data, "train") == [[k] * k for k in (3, 4, 5, 1, 2)] and data.spec.class_names == ("cat", "dog")
    assert warnings(caplog) == [f"1 sounds in {root} lie outside train/, val/ and test/ and are not used."]
    assert sorted(data.training_store().y.tolist()) == [-1, -1, -1, 0, 1]
    with pytest.raises(UserError, match="has 2 classes, got data.num_classes=3"):
        wavs(root, num_classes=3).setup()


def test_without_folders_of_splits_a_tenth_each_is_cut_off(tmp_path):
    data = wavs(fill(tmp_path / "set", {"a": 10, "b": 10}))
    assert {split: len(data.split(split)) for split in SPLITS} == {"train": 16, "val": 2, "test": 2}
    found = {sound[0]: y for s in SPLITS for sound, y in zip(stored(data, s), data.split(s).y.tolist(), strict=True)}
    assert found == {k: int(k > 10) for k in range(1, 21)}
    assert wavs(fill(tmp_path / "one", {"only": 5})).split("train").y is None  # a single folder is no class


def test_one_level_too_high_is_passed_over_and_classes_are_listed(tmp_path, caplog):
    fill(tmp_path / "high" / "outer", {"a": 10, "b": 10})
    with caplog.at_level("INFO", logger="genlab"):
        data = wavs(tmp_path / "high")
        assert data.split("train") and data.spec.class_names == ("a", "b")
    assert "lie in outer" in caplog.text and "wav-high has 2 classes: a 10, b 10." in caplog.text


def test_sounds_of_one_length_are_cut_or_followed_by_silence(tmp_path):
    data = wavs(fill(tmp_path / "set", {"train": 4, "val": 1, "test": 1}), shape=[3])
    assert data.split("train").values("x").tolist() == [[1, 0, 0], [2, 2, 0], [3, 3, 3], [4, 4, 4]]
    x = data.stream().batch(0).x
    assert x.shape == (4, 3) and x.dtype == torch.float32 and data.spec.shape == (3,)
    with pytest.raises(UserError, match=r"is for sounds of any length, and data.shape=\[3\] cuts them"):
        wavs(tmp_path / "set", shape=[3], most=5)


def test_longer_sounds_are_left_out(tmp_path, caplog):
    data = wavs(fill(tmp_path / "set", {"train": 4, "val": 1, "test": 1}, start=1), most=5)
    with pytest.raises(UserError, match="has no sounds for test of at most 5 samples; try data.columns.x.most=null"):
        data.setup()
    assert warnings(caplog) == [
        "1 of the 6 sounds of wav-set have more than data.columns.x.most=5 samples and are left out."
    ]


def test_all_files_have_one_rate(tmp_path):
    root = fill(tmp_path / "set", {"a": 10})
    with pytest.raises(UserError, match=r"001.wav has 8000 samples a second, got data.rate=16000. Try data.rate=null"):
        wavs(root, rate=16000).setup()
    assert wavs(root, rate=8000).spec.x.rate == 8000  # before files are read
    save(root / "a" / "999.wav", [1], rate=22050)
    with pytest.raises(
        UserError, match=r"one rate: \S*001.wav has 8000 samples a second, and \S*999.wav has 22050. Convert them"
    ):
        wavs(root).setup()
    with pytest.raises(UserError, match=r"999.wav has 22050 samples a second, got data.rate=8000"):
        wavs(root, rate=8000).setup()


def test_broken_sounds_are_listed_or_skipped(tmp_path, caplog):
    root = fill(tmp_path / "set", {"a": 10, "b": 10})
    (root / "a" / "003.wav").write_bytes(b"RIFF")
    (root / "b" / "015.wav").write_text("this is no sound")
    save(root / "b" / "016.wav", [1, 2], width=4)
    save(root / "b" / "017.wav", [])
    with pytest.raises(UserError) as caught:
        wavs(root).prepare_data()
    message = str(caught.value)
    assert message.startswith("4 of 20 sounds cannot be read: ")
    for part in ("003.wav cannot be read as a wav file: it is cut off", "015.wav cannot be read as a wav file: ",
                 "016.wav has 32 bits a sample; 8 and 16 can be read", "017.wav holds no sound",
                 "or leave them out with data.skip_broken=true"):  # fmt: skip
        assert part in message
    data = wavs(root, skip_broken=True)
    found = {sound[0]: y for s in SPLITS for sound, y in zip(stored(data, s), data.split(s).y.tolist(), strict=True)}
    assert found == {k: int(k > 10) for k in range(1, 21) if k not in (3, 15, 16, 17)}
    assert len(warnings(caplog)) == 1 and "4 of 20 sounds cannot be read and are skipped, e.g. " in caplog.text
    official = fill(tmp_path / "official", {"train": 3, "val": 1, "test": 1})
    (official / "val" / "004.wav").write_bytes(b"")
    with pytest.raises(UserError, match="No sound of the val split in .*official can be read"):
        wavs(official, skip_broken=True).setup()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"root": None}, "wav needs its files: set data.root=PATH to a folder of wav files"),
        ({"root": "nowhere"}, "nowhere does not exist; set it to a folder of wav files"),
        ({"root": "a.wav"}, "a.wav is a file; set it to a folder of wav files"),
        ({"root": "empty"}, "There are no sounds in .*; expected files ending in .wav, in any depth"),
        ({"root": "empty", "download": True}, "cannot be downloaded; set data.root=PATH"),
        ({"rate": 0}, "data.rate must be a positive number of samples a second or null, got 0"),
        ({"shape": None}, "needs data.shape, the shape of one sample"),
        ({"shape": [1, 8]}, r"A wave has the shape \[T\], or \[null\] for any length"),
    ],
)
def test_mistakes_are_said_in_a_sentence(arguments, message, tmp_path):
    save(tmp_path / "a.wav", [1])
    (tmp_path / "empty").mkdir()
    if arguments.get("root") is not None:
        arguments = {**arguments, "root": tmp_path / arguments["root"]}
    with pytest.raises(UserError, match=message):
        WavFolder(**{"batch_size": 4, "shape": [None], "root": tmp_path, **arguments}).prepare_data()


# --- Spoken digits ----------------------------------------------------------------------------------------------------

SPEAKERS = {"speaker": {"kind": "label", "size": 3, "names": ["bo", "al_x", "cy"]}}


def spoken(root, digits=10, takes=8):
    """For digit d, speaker s and take n a sound of one sample, 100 d + 10 s + n."""
    for digit in range(digits):
        for s, speaker in enumerate(("al_x", "bo", "cy")):
            for n in range(takes):
                save(root / f"{digit}_{speaker}_{n}.wav", [100 * digit + 10 * s + n])
    return root


def digits(root, **arguments):
    arguments = {"batch_size": 4, "shape": [None], "columns": SPEAKERS, "rate": 8000, "num_classes": 10, **arguments}
    return SpokenDigits(root=root, **arguments)


def facts(data, split):
    """Digit, speaker (in the order of the alphabet) and take of each sound, as the sounds say."""
    return [(sound[0] // 100, sound[0] // 10 % 10, sound[0] % 10) for sound in stored(data, split)]


def test_the_first_five_takes_are_for_testing(tmp_path):
    spoken(tmp_path / "recordings")
    data = digits(tmp_path)
    assert {split: len(data.split(split)) for split in SPLITS} == {"train": 81, "val": 9, "test": 150}
    assert data.name == "spoken_digits" and data.spec.fields["speaker"].names == ("bo", "al_x", "cy")
    for split in SPLITS:
        store, said = data.split(split), facts(data, split)
        assert all((n < 5) == (split == "test") for _, _, n in said)
        assert store.y.tolist() == [digit for digit, _, _ in said]
        assert store.values("speaker").tolist() == [[1, 0, 2][s] for _, s, _ in said]
    batch = data.stream().batch(0)
    assert batch["speaker"].dtype == torch.int64 and batch.y.shape == (4,)


def test_voices_that_are_never_heard_in_training(tmp_path):
    data = digits(spoken(tmp_path / "set"), held_out=["cy", "al_x"])  # the files may lie in the folder itself
    assert {split: len(data.split(split)) for split in SPLITS} == {"train": 72, "val": 8, "test": 160}
    assert {s for _, s, _ in facts(data, "test")} == {0, 2} and {n for _, _, n in facts(data, "test")} == {*range(8)}
    heard = facts(data, "train") + facts(data, "val")
    assert {s for _, s, _ in heard} == {1} and {n for _, _, n in heard} == {*range(8)}
    assert data.name == "spoken_digits-without-al_x-cy"


def test_speakers_need_not_be_a_column(tmp_path):
    data = digits(spoken(tmp_path / "set"), columns=None)
    assert "speaker" not in data.stream().batch(0) and len(data.split("test")) == 150


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"held_out": ["eve"]}, "data.held_out names speakers among al_x, bo, cy; 'eve' is none of them"),
        ({"held_out": ["al_x", "bo", "cy"]}, "nobody is left for training"),
        ({"held_out": []}, "data.held_out must be a list of names or null"),
        ({"held_out": "bo"}, "data.held_out must be a list of names or null, got 'bo'"),
        ({"columns": {"speaker": {"kind": "label", "size": 2, "names": ["al_x", "bo"]}}},
         "holds recordings of cy, and data.columns.speaker.names only al_x, bo"),
        ({"num_classes": 9}, "spoken_digits has 10 classes, got data.num_classes=9"),
        ({"root": None}, "spoken_digits needs its files: set data.root=PATH to the folder that holds recordings/"),
        ({"root": "empty"}, "holds no recordings; set data.root to the folder that holds recordings/"),
        ({"root": "odd"}, "odd holds seven.wav, not named <digit>_<speaker>_<n>.wav"),
        ({"download": True}, "spoken_digits cannot be downloaded"),
    ],
)  # fmt: skip
def test_mistakes_with_digits_are_said_in_a_sentence(arguments, message, tmp_path):
    spoken(tmp_path / "set", digits=1)
    (tmp_path / "empty").mkdir()
    save(tmp_path / "odd" / "seven.wav", [1])
    if arguments.get("root") is not None:
        arguments = {**arguments, "root": tmp_path / arguments["root"]}
    with pytest.raises(UserError, match=message):
        digits(**{"root": tmp_path / "set", **arguments}).prepare_data()


def test_real_digits(unpacked):
    root = unpacked("fsdd-wav8k") / "fsdd"
    data = instantiate(compose(["data=spoken_digits", f"data.root={root}"])["data"])
    assert {split: len(data.split(split)) for split in SPLITS} == {"train": 2430, "val": 270, "test": 300}
    assert data.split("test").y.bincount().tolist() == 10 * [30]
    assert data.split("test").values("speaker").bincount().tolist() == 6 * [50]
    assert data.spec.x.most == 18262  # 2.3 s
    seconds = sum(len(data.split(split).columns["x"].flat) for split in SPLITS) / 8000
    assert 21.5 * 60 < seconds < 22.5 * 60
    alone = instantiate(compose(["data=spoken_digits", f"data.root={root}", "data.held_out=[theo]"])["data"])
    assert {split: len(alone.split(split)) for split in SPLITS} == {"train": 2250, "val": 250, "test": 500}
    assert alone.split("test").values("speaker").unique().tolist() == [4]
    dense = instantiate(compose(["data=wav", f"data.root={root}", "data.shape=[4000]"])["data"])
    assert dense.split("train").values("x").shape == (2400, 4000)
