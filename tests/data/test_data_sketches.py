"""Sketches: the files of sketch-rnn and of Quick, Draw!, scaling, and pickles that run nothing."""

import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from genlab.config.composition import compose
from genlab.config.instantiate import instantiate
from genlab.data.sketches import Sketches, read_npz
from genlab.errors import UserError

SPLITS = {"train": "train", "val": "valid", "test": "test"}


def drawn(n, seed, longest=6):
    """Sketches [T, 3] int16 of 2 to `longest` steps."""
    rng = np.random.RandomState(seed)
    sketches = []
    for _ in range(n):
        steps = rng.randint(-50, 50, (rng.randint(2, longest + 1), 3)).astype(np.int16)
        steps[:, 2] = rng.rand(len(steps)) < 0.3
        sketches.append(steps)
    return sketches


PARTS = {"train": drawn(12, 0), "valid": drawn(3, 1), "test": drawn(4, 2)}


def objects(sketches):
    array = np.empty(len(sketches), dtype=object)
    array[:] = sketches
    return array


def flat(path, parts=PARTS):
    joined = {name: np.concatenate(sketches) for name, sketches in parts.items()}
    lengths = {f"{name}_lengths": np.array([len(s) for s in sketches], np.int32) for name, sketches in parts.items()}
    np.savez_compressed(path, **joined, **lengths)
    return path


def pickled(path, parts=PARTS):
    np.savez_compressed(path, **{name: objects(sketches) for name, sketches in parts.items()})
    return path


def with_pickle(path, data, length=1, name="train"):
    """An npz with an array of objects whose pickle is `data`."""
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "|O", "fortran_order": False, "shape": (length,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.npy", member.getvalue() + data)
    return path


def of_python2(sketches):
    """The pickle of an array of arrays as Python 2 wrote it, where bytes are strings."""

    def text(value):
        return b"T" + struct.pack("<i", len(value)) + value

    def number(value):
        return b"J" + struct.pack("<i", value)

    def array(shape, code, order, content):
        dtype = b"cnumpy\ndtype\n" + text(code) + number(0) + number(1) + b"\x87R("
        dtype += number(3) + text(order) + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
        made = b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b")
        sizes = b"(" + b"".join(map(number, shape)) + b"t"
        return made + b"\x87R(" + number(1) + sizes + dtype + b"\x89" + content + b"tb"

    inner = [array(s.shape, b"i2", b"<", text(s.astype("<i2").tobytes())) for s in sketches]
    return b"\x80\x02" + array((len(sketches),), b"O8", b"|", b"](" + b"".join(inner) + b"e") + b"."


def sketches_of(root, **arguments):
    return Sketches(root=root, **{"batch_size": 4, "columns": {"x": {"most": None}}, **arguments})


def stored(data, split):
    store = data.split(split)
    values = store.gather(torch.arange(len(store)))
    return [value[:length].numpy() for value, length in zip(values.values, values.length.tolist(), strict=True)]


def read(data):
    return {split: stored(data, split) for split in SPLITS}


@pytest.mark.parametrize("write", [flat, pickled])
def test_offsets_are_divided_by_their_deviation_over_the_training_split(write, tmp_path):
    """Ha & Eck (2018), section 3.1: one number for dx and dy."""
    data = sketches_of(write(tmp_path / "s.npz"))
    deviation = np.std(np.concatenate(PARTS["train"])[:, :2].astype(np.float64))
    for split, name in SPLITS.items():
        found = stored(data, split)
        assert len(found) == len(PARTS[name])
        for mine, theirs in zip(found, PARTS[name], strict=True):
            np.testing.assert_allclose(mine[:, :2], theirs[:, :2] / deviation, rtol=1e-6)
            np.testing.assert_array_equal(mine[:, 2], theirs[:, 2])
    assert abs(data.describe()["scale"] - deviation) < 1e-9 and data.spec.x.most == 6
    joined = data.split("train").columns["x"].flat
    assert joined.dtype == torch.float32 and abs(float(joined[:, :2].std(unbiased=False)) - 1) < 1e-6


def test_batches_hold_five_numbers_a_step(tmp_path):
    data = sketches_of(flat(tmp_path / "s.npz"), scale=2.0)
    batch = data.stream().batch(0)
    x = batch["x"]
    assert x.values.shape == (4, int(x.length.max()), 5) and data.spec.x.kind == "strokes"
    for row, i in enumerate(batch["index"].tolist()):
        steps = torch.from_numpy(PARTS["train"][i].astype(np.float32))
        lifted = steps[:, 2:]
        expected = torch.cat([steps[:, :2] / 2, 1 - lifted, lifted, torch.zeros_like(lifted)], dim=1)
        assert_close(x.values[row, : len(steps)], expected, rtol=0, atol=0)
        assert not x.values[row, len(steps) :].any() and int(x.length[row]) == len(steps)
    assert data.name == "sketches-s" and "y" not in batch


def test_all_formats_hold_the_same(tmp_path):
    expected = read(sketches_of(flat(tmp_path / "flat.npz"), scale=1.0))
    old = with_pickle(tmp_path / "old.npz", of_python2(PARTS["train"]), len(PARTS["train"]))
    older = with_pickle(tmp_path / "older.npz", pickle.dumps(objects(PARTS["train"]), protocol=2), len(PARTS["train"]))
    newest = with_pickle(tmp_path / "newest.npz", pickle.dumps(objects(PARTS["train"]), protocol=4), 12)
    for path in (old, older, newest, pickled(tmp_path / "pickled.npz")):
        found = read_npz(path)["train"]
        assert_close(found.flat, torch.from_numpy(np.concatenate(expected["train"])), rtol=0, atol=0)
        assert found.lengths.tolist() == [len(s) for s in PARTS["train"]]


def test_a_file_with_the_training_sketches_alone_is_cut(tmp_path):
    whole = drawn(20, 3)
    data = sketches_of(pickled(tmp_path / "s.npz", {"train": whole}))
    parts = read(data)
    assert {split: len(part) for split, part in parts.items()} == {"train": 16, "val": 2, "test": 2}
    deviation = np.std(np.concatenate(parts["train"])[:, :2])  # of the training part alone
    assert abs(deviation - 1) < 1e-6


def test_large_offsets_are_clipped_and_long_sketches_left_out(tmp_path, caplog):
    far = np.array([[2000, -3000, 0], [3, 4, 1]], np.int16)
    parts = {"train": [far, *drawn(5, 4), np.ones((9, 3), np.int16)], "valid": drawn(2, 5), "test": drawn(2, 6)}
    path = flat(tmp_path / "s.npz", parts)
    data = sketches_of(path, scale=1.0, columns={"x": {"most": 8}})
    assert stored(data, "train")[0].tolist() == [[1000, -1000, 0], [3, 4, 1]] and len(data.split("train")) == 6
    assert caplog.messages == [
        "1 of the 11 sketches of sketches-s have more than data.columns.x.most=8 steps and are left out."
    ]
    assert data.spec.x.most == 8
    assert stored(sketches_of(path, scale=1.0, clip=None), "train")[0][0].tolist() == [2000, -3000, 0]
    assert stored(sketches_of(path, scale=4.0, clip=10), "train")[0].tolist() == [[2.5, -2.5, 0], [0.75, 1, 1]]


def test_drawings_of_quick_draw(tmp_path):
    corner = {"word": "corner", "drawing": [[[10, 10, 30], [5, 25, 25]], [[40], [50]]]}
    with_times = {"drawing": [[[0, 1], [0, 2], [0, 17]]]}
    path = tmp_path / "corner.ndjson"
    path.write_text("".join(json.dumps(row) + "\n" for row in [corner, with_times] * 10))
    data = sketches_of(path, scale=1.0)
    found = [steps for part in read(data).values() for steps in part]
    assert len(found) == 20
    drawings = {steps.tobytes() for steps in found}
    expected = ([[0, 0, 0], [0, 20, 0], [20, 0, 1], [10, 25, 1]], [[0, 0, 0], [1, 2, 1]])
    assert drawings == {np.array(steps, np.float32).tobytes() for steps in expected}
    path.write_text('{"drawing": [[[0, 1], [0, 2]]]}\n{"drawing": [[[0, 1], [0]]]}\n')
    with pytest.raises(UserError, match=r"Line 2 of .*corner.ndjson is no drawing \(.*fetch the file again"):
        sketches_of(path).setup()
    path.write_text('\n{"drawing": [[[0, NaN], [0, 1]]]}\n')
    with pytest.raises(UserError, match=r"Line 2 of .*corner.ndjson is no drawing \(a place is no number"):
        sketches_of(path).setup()
    path.write_text('{"drawing": []}\n' * 10)
    with pytest.raises(UserError, match="has no sketches"):
        sketches_of(path).setup()


# --- Pickles ----------------------------------------------------------------------------------------------------------


class Runs:
    """Unpickling it would call a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def of_names(module, name):
    """A pickle that calls module.name("x")."""
    return f"\x80\x02c{module}\n{name}\nX\x01\x00\x00\x00x\x85R.".encode("latin1")


def test_a_pickle_that_runs_code_is_refused_and_nothing_runs(tmp_path):
    trap = tmp_path / "ran"
    inside = {"train": objects([Runs(os.mkdir, str(trap)), *PARTS["train"]])}
    np.savez(tmp_path / "inside.npz", **inside)
    np.savez(tmp_path / "beside.npz", train=objects(PARTS["train"]), valid=objects([Runs(os.mkdir, str(trap))]))
    for name in ("inside", "beside"):
        with pytest.raises(UserError, match=rf"{name}.npz cannot be read as sketches \(it asks to run .*mkdir"):
            sketches_of(tmp_path / f"{name}.npz").setup()
    assert not trap.exists()
    with pytest.raises(FileExistsError):  # the trap does work: numpy's own reader falls into it, here for the 2nd time
        for _ in range(2):
            np.load(tmp_path / "inside.npz", allow_pickle=True)["train"]
    assert trap.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"), ("__builtin__", "eval"), ("os", "system"), ("numpy", "load"), ("numpy", "memmap"),
        ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "fromfile"), ("copyreg", "_reconstructor"),
        ("genlab.data.sketches", "_Array"), ("numpy", "dtype.__class__"), ("_codecs", "decode"),
    ],
)  # fmt: skip
def test_nothing_but_arrays_may_be_named(module, name, tmp_path):
    path = with_pickle(tmp_path / "s.npz", of_names(module, name))
    with pytest.raises(UserError, match=rf"it asks to run {module}.{name}, .*nothing was run"):
        read_npz(path)


def test_damaged_and_odd_pickles_are_refused_in_a_sentence(tmp_path):
    whole = pickle.dumps(objects(PARTS["train"]), protocol=4)
    rng = np.random.RandomState(0)
    cases = [whole[:n] for n in range(0, len(whole) - 1, 97)] + [b"", b"\x80\x02N.", b"\x80\x02]."]
    cases += [rng.bytes(100) for _ in range(50)]
    cases += [pickle.dumps(value, protocol=4) for value in (1, [1], {"a": 1}, "text", objects([1, 2]))]
    cases += [pickle.dumps(objects([objects([1])]), protocol=4), pickle.dumps(objects(["text"]), protocol=4)]
    cases += [of_names("numpy", "dtype"), of_names("numpy", "ndarray"), of_names("_codecs", "encode")]
    for data in cases:
        with pytest.raises(UserError, match="cannot be read as sketches"):
            read_npz(with_pickle(tmp_path / "s.npz", data))
    changed = bytearray(whole)
    for place in rng.randint(0, len(whole), 200):  # a changed byte is refused, or changes a number
        data = changed.copy()
        data[place] ^= 1 << int(rng.randint(8))
        try:
            read_npz(with_pickle(tmp_path / "s.npz", bytes(data)))
        except UserError:
            pass


# --- Mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros(3)}, "it holds no array train, only images"),
        ({"train": np.zeros((4, 3), np.int16)}, r"steps must be numbers \[S, 3\]"),
        ({"train": np.zeros((4, 2), np.int16), "train_lengths": [4]}, r"steps must be numbers .*, got int16 \[4, 2\]"),
        ({"train": np.zeros((4, 3), np.int16), "train_lengths": [3]}, "train_lengths do not add up to the 4 steps"),
        ({"train": np.zeros((4, 3), np.int16), "train_lengths": [5, -1]}, "Offsets must be rising"),
        ({"train": np.zeros((4, 3), np.int16), "train_lengths": [2.0, 2.0]}, "train_lengths do not add up"),
        ({"train": np.full((4, 3), 2, np.int16), "train_lengths": [4]}, "the third number of a step must be 0 or 1"),
        ({"train": np.full((4, 3), np.nan), "train_lengths": [4]}, "steps must be numbers"),
        ({"train": np.zeros((4, 3), complex), "train_lengths": [4]}, "steps must be numbers"),
    ],
)
def test_other_arrays_are_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(UserError, match=f"s.npz cannot be read as sketches .*{message}.*fetch it again"):
        sketches_of(tmp_path / "s.npz").setup()


def test_an_array_of_sketches_of_one_length_is_read(tmp_path):
    same = np.stack([np.array([[i, 1, 0], [2, i, 1]], np.int16) for i in range(10)])
    np.savez(tmp_path / "s.npz", train=same)
    assert read_npz(tmp_path / "s.npz")["train"].lengths.tolist() == [2] * 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"root": None}, "sketches needs its files: set data.root=PATH to an npz of sketch-rnn or an ndjson"),
        ({"root": "nowhere.npz"}, "nowhere.npz does not exist; set it to an npz"),
        ({"root": ""}, "is a folder; set it to an npz"),
        ({"root": "text.npz"}, "text.npz cannot be read as sketches .*not a zip file"),
        ({"root": "still.npz"}, "All offsets in .*still.npz are equal"),
        ({"root": "still.npz", "download": True}, "cannot be downloaded; set data.root=PATH"),
        ({"scale": 0.0}, "data.scale must be a positive number or null, got 0.0"),
        ({"clip": -1}, "data.clip must be a positive number or null, got -1"),
        ({"shape": [None, 3]}, r"samples of shape \[None, 5\], got data.shape=\[None, 3\]"),
        ({"flip": True}, "are for images"),
    ],
)
def test_mistakes_are_said_in_a_sentence(arguments, message, tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    flat(tmp_path / "still.npz", {"train": [np.zeros((3, 3), np.int16)] * 9})
    if arguments.get("root") is not None:
        arguments = {**arguments, "root": tmp_path / arguments["root"]}
    with pytest.raises(UserError, match=message):
        Sketches(**{"batch_size": 4, "root": tmp_path, **arguments}).prepare_data()


def test_sheep(shared_data):
    path = shared_data / "sketch-sheep.npz"
    if not path.is_file():
        pytest.skip(f"real data not found: {path}")
    data = instantiate(compose(["data=sketches", f"data.root={path}"])["data"])
    assert {split: len(data.split(split)) for split in SPLITS} == {"train": 7400, "val": 300, "test": 300}
    assert data.spec.x.most == 250 and int(data.split("train").columns["x"].lengths.max()) == 250
    assert abs(data.describe()["scale"] - 18.5198) < 1e-4
    assert data.stream().batch(0)["x"].values.shape[0] == 100
