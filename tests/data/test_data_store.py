"""Decoding once: sizes, broken images, the cache, memory maps."""

import errno
import io
import logging
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from genlab.data import columns as columns_module
from genlab.data import decode as decode_module
from genlab.data import store as store_module
from genlab.data.columns import Ragged, Rows
from genlab.data.store import ArrayStore, ImageEntry, cached_array, resize_images
from genlab.errors import UserError
from genlab.fields.decoding import decode_image, fit_image


def prepare_images(*arguments, **more) -> ArrayStore:
    return store_module.prepare_images(*arguments, **more)[0]


def picture(seed: int, size: tuple[int, int] = (8, 8), channels: int = 3) -> np.ndarray:
    """Random pixels [H, W, C] (or [H, W])."""
    shape = size if channels == 1 else (*size, channels)
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def encode(pixels: np.ndarray, form: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def entry(name: str, data: bytes, label: int = -1) -> ImageEntry:
    return ImageEntry(name, (len(data), hash(data) % 1000), lambda: data, label)


def entries_of(n: int = 6) -> list[ImageEntry]:
    return [entry(f"{k}.png", encode(picture(k)), k % 2) for k in range(n)]


def test_images_of_the_right_size_are_kept_bit_for_bit(tmp_path):
    store = prepare_images(entries_of(), (8, 8), 3, tmp_path)
    expected = np.stack([picture(k).transpose(2, 0, 1) for k in range(6)])
    torch.testing.assert_close(store.values("x"), torch.from_numpy(expected))
    assert store.y.tolist() == [0, 1, 0, 1, 0, 1]
    assert store.index is None


def test_grey_rgb_size_and_centre_crop(tmp_path):
    """A wide image with a bright middle: the crop keeps the middle third and loses the dark sides."""
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = (200, 100, 50)
    wide = [entry("wide.png", encode(pixels))]
    store = prepare_images(wide, (5, 5), 3, tmp_path)
    assert store.values("x").shape == (1, 3, 5, 5)
    expected = torch.tensor([200, 100, 50], dtype=torch.uint8).view(3, 1, 1).expand(3, 5, 5)
    torch.testing.assert_close(store.values("x")[0], expected, rtol=0, atol=0)  # nothing of the dark sides gets in
    grey = prepare_images(wide, (5, 7), 1, tmp_path)
    assert grey.values("x").shape == (1, 1, 5, 7)
    # Lanczos rings a little; 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    assert abs(int(grey.values("x")[0, 0, 2, 3]) - 124) <= 1
    assert int(grey.values("x")[0, 0, 2, 0]) < 124  # seven wide and five high shows some of the sides
    assert grey.y is None


def test_sixteen_bit_greys_keep_their_upper_byte_and_photographs_stand_upright():
    deep = Image.fromarray(np.array([[0, 255, 256, 65535]], np.uint16))
    assert fit_image(deep, (1, 4), 1).tolist() == [[[0, 0, 1, 255]]]
    pixels = np.zeros((4, 8), np.uint8)
    pixels[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying: to be turned clockwise by 90 degrees
    data = encode(pixels, "png", exif=exif)
    decoded = decode_image(data, (8, 4), 1)
    np.testing.assert_array_equal(decoded[0], np.rot90(pixels, -1))


@pytest.mark.parametrize("form", ["png", "jpeg", "bmp", "gif", "webp", "tiff"])
def test_a_cut_off_image_is_broken_in_every_format(form, tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as some libraries set it
    data = encode(picture(0, (40, 40)), form)
    assert prepare_images([entry("whole", data)], (40, 40), 3, tmp_path).values("x").shape == (1, 3, 40, 40)
    with pytest.raises(UserError, match=r"1 of 1 images cannot be read: cut \(.*data.skip_broken=true"):
        prepare_images([entry("cut", data[: len(data) // 2])], (40, 40), 3, tmp_path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_all_broken_images_are_found_and_ten_are_named(tmp_path):
    mixed = entries_of(5) + [entry(f"bad{k:02}.png", b"not an image") for k in range(13)]
    with pytest.raises(UserError) as caught:
        prepare_images(mixed, (8, 8), 3, tmp_path)
    message = str(caught.value)
    assert "13 of 18 images" in message
    assert [f"bad{k:02}.png" in message for k in range(13)] == [True] * 10 + [False] * 3
    assert "and 3 more" in message
    assert "data.skip_broken=true" in message
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_skip_broken_leaves_them_out_and_says_how_many(tmp_path, caplog):
    mixed = entries_of(4)
    mixed.insert(1, entry("bad.png", encode(picture(9))[:50], 1))
    mixed.append(ImageEntry("gone.png", (1, 1), lambda: open("/nonexistent/gone.png", "rb").read(), 0))
    for _ in range(2):  # decoded, then from the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="genlab"):
            store = prepare_images(mixed, (8, 8), 3, tmp_path, skip_broken=True)
        assert "Left out: 2 of 6 images cannot be read: bad.png" in caplog.text
        assert len(store) == 4
        assert store.index.tolist() == [0, 2, 3, 4]
        assert store.y.tolist() == [0, 1, 0, 1]
        torch.testing.assert_close(
            store.gather(torch.tensor([1])), torch.from_numpy(picture(1).transpose(2, 0, 1))[None]
        )
    with pytest.raises(UserError, match="2 of 6 images"):  # the cache knows that they are broken
        prepare_images(mixed, (8, 8), 3, tmp_path)
    with pytest.raises(UserError, match="None of the 1 images"):
        prepare_images([entry("bad.png", b"")], (8, 8), 3, tmp_path, skip_broken=True)


def test_a_decompression_bomb_is_broken(tmp_path, monkeypatch):
    data = encode(picture(0, (40, 40)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 1600 pixels: PIL only warns up to twice the limit
    with pytest.raises(UserError, match="bomb"):
        prepare_images([entry("bomb.png", data)], (8, 8), 3, tmp_path)
    # Python may come to keep warning filters out of threads; the check does not depend on them.
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(ValueError, match="bomb"):
        decode_image(data, (8, 8), 3)


def forbid_decoding(monkeypatch):
    def fail(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(decode_module, "read_image", fail)


def test_the_second_call_decodes_nothing(tmp_path, monkeypatch):
    first = prepare_images(entries_of(), (8, 8), 3, tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".npy"]
    forbid_decoding(monkeypatch)
    again = prepare_images(entries_of(), (8, 8), 3, tmp_path)
    torch.testing.assert_close(again.values("x"), first.values("x"), rtol=0, atol=0)
    assert again.fingerprint() == first.fingerprint()


@pytest.mark.parametrize("change", ["stamp", "name", "size", "channels", "key"])
def test_whatever_changes_the_result_makes_it_anew(change, tmp_path, monkeypatch):
    prepare_images(entries_of(), (8, 8), 3, tmp_path)
    forbid_decoding(monkeypatch)
    entries, size, channels, key = entries_of(), (8, 8), 3, ""
    if change == "stamp":
        entries[2] = ImageEntry(entries[2].name, (entries[2].stamp[0], 10**6), entries[2].read)
    elif change == "name":
        entries[2] = ImageEntry("other.png", entries[2].stamp, entries[2].read)
    elif change == "size":
        size = (8, 9)
    elif change == "channels":
        channels = 1
    else:
        key = "other"
    with pytest.raises(UserError, match="decoded again"):
        prepare_images(entries, size, channels, tmp_path, key)


def test_a_damaged_cache_is_made_anew(tmp_path, caplog):
    first = prepare_images(entries_of(), (8, 8), 3, tmp_path)
    path = next(tmp_path.glob("*.npy"))
    path.write_bytes(path.read_bytes()[:200])
    with caplog.at_level(logging.WARNING, logger="genlab"):
        again = prepare_images(entries_of(), (8, 8), 3, tmp_path)
    assert "made anew" in caplog.text
    torch.testing.assert_close(again.values("x"), first.values("x"), rtol=0, atol=0)
    with path.open("rb") as file:
        np.testing.assert_array_equal(np.load(file), first.values("x").numpy())


def test_a_memory_map_holds_the_same_and_writes_never_reach_the_file(tmp_path, monkeypatch):
    in_memory = prepare_images(entries_of(), (8, 8), 3, tmp_path / "a")
    mapped = prepare_images(entries_of(), (8, 8), 3, tmp_path / "b", memory_limit=0)
    torch.testing.assert_close(mapped.values("x"), in_memory.values("x"), rtol=0, atol=0)
    assert mapped.fingerprint() == in_memory.fingerprint()
    assert len(list((tmp_path / "b").iterdir())) == 2
    mapped.values("x").zero_()
    forbid_decoding(monkeypatch)
    for _ in range(2):
        again = prepare_images(entries_of(), (8, 8), 3, tmp_path / "b", memory_limit=0)
        torch.testing.assert_close(again.values("x"), in_memory.values("x"), rtol=0, atol=0)
        again.values("x").zero_()


def test_a_failure_leaves_no_file_behind_a_memory_map(tmp_path):
    with pytest.raises(UserError, match="1 of 7"):
        prepare_images([*entries_of(), entry("bad.png", b"?")], (8, 8), 3, tmp_path, memory_limit=0)
    assert list(tmp_path.iterdir()) == []


def test_without_a_usable_cache_small_data_works_and_large_data_says_why(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    blocked = tmp_path / "file" / "cache"
    with caplog.at_level(logging.WARNING, logger="genlab"):
        store = prepare_images(entries_of(), (8, 8), 3, blocked)
    assert len(store) == 6
    assert "cannot be used" in caplog.text
    with pytest.raises(UserError, match="GENLAB_CACHE"):
        prepare_images(entries_of(), (8, 8), 3, blocked, memory_limit=0)


def test_no_image_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="no images"):
        prepare_images([], (8, 8), 3, tmp_path)


def test_one_thread_and_many_give_the_same(tmp_path):
    many = [entry(f"{k:03}.png", encode(picture(k, (9, 13)))) for k in range(150)]
    a = prepare_images(many, (6, 6), 3, tmp_path / "a", workers=1)
    b = prepare_images(many, (6, 6), 3, tmp_path / "b", workers=8)
    torch.testing.assert_close(a.values("x"), b.values("x"), rtol=0, atol=0)


def test_arrays_are_resized_as_files_are(tmp_path):
    images = np.stack([picture(k) for k in range(4)]).transpose(0, 3, 1, 2)
    files = prepare_images([entry(f"{k}.png", encode(picture(k))) for k in range(4)], (16, 12), 3, tmp_path)
    for _ in range(2):
        resized = resize_images(images, (16, 12), 3, cache_dir=tmp_path)
        torch.testing.assert_close(resized.values("x"), files.values("x"), rtol=0, atol=0)
    untouched = resize_images(images, (8, 8), 3, cache_dir=tmp_path)
    torch.testing.assert_close(untouched.values("x"), torch.from_numpy(images.copy()), rtol=0, atol=0)
    assert resize_images(images, (8, 8), 1, cache_dir=tmp_path).values("x").shape == (4, 1, 8, 8)


@pytest.mark.parametrize("view", [False, True])
def test_a_subset_holds_its_samples_whether_copied_or_viewed(view, monkeypatch):
    monkeypatch.setattr(columns_module, "_COPY_LIMIT", 0 if view else 2**20)
    x = torch.arange(20, dtype=torch.uint8).view(10, 1, 1, 2)
    store = ArrayStore({"x": x, "y": torch.arange(10)})
    part = store.subset(torch.tensor([7, 2, 5]))
    inner = part.subset(torch.tensor([2, 0]))
    assert (part.index is not None) == view
    assert len(inner) == 2
    assert inner.nbytes == 4 + 16  # two images and two labels
    torch.testing.assert_close(inner.gather(torch.tensor([1, 0])), x[[7, 5]])
    assert inner.gather(torch.tensor([1, 0]), "y").tolist() == [7, 5]
    torch.testing.assert_close(inner.to("cpu").values("x"), x[[5, 7]])


def test_the_fingerprint_follows_pixels_labels_and_order():
    x = torch.arange(8, dtype=torch.uint8).view(4, 1, 1, 2)
    y = torch.arange(4)
    prints = [
        ArrayStore({"x": x, "y": y}).fingerprint(),
        ArrayStore({"x": x}).fingerprint(),
        ArrayStore({"x": x.flip(0), "y": y}).fingerprint(),
        ArrayStore({"x": x, "y": y.flip(0)}).fingerprint(),
        ArrayStore({"x": Rows(x, torch.tensor([0, 1, 2])), "y": y[:3]}).fingerprint(),
    ]
    assert len(set(prints)) == 5
    assert ArrayStore({"x": x.clone(), "y": y.clone()}).fingerprint() == prints[0]


def test_columns_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"equally long, got \{'x': 3, 'y': 4\}"):
        ArrayStore({"x": torch.zeros(3, 2), "y": torch.zeros(4, dtype=torch.int64)})


def test_columns_are_added_replaced_and_left_out():
    store = ArrayStore({"x": torch.zeros(3, 2)})
    more = store.with_column("y", torch.arange(3))
    assert more.y.tolist() == [0, 1, 2] and store.y is None and "y" in more and "y" not in store
    assert more.with_column("y", torch.arange(3) + 5).y.tolist() == [5, 6, 7]
    assert list(more.with_column("y", None).columns) == ["x"]


def test_sequences_are_joined_and_padded():
    sequences = [torch.tensor([1, 2, 3]), torch.tensor([], dtype=torch.int64), torch.tensor([4]), torch.tensor([5, 6])]
    column = Ragged.of(sequences)
    assert column.flat.tolist() == [1, 2, 3, 4, 5, 6] and column.offsets.tolist() == [0, 3, 3, 4, 6]
    assert len(column) == 4 and column.lengths.tolist() == [3, 0, 1, 2]
    found = column.gather(torch.tensor([3, 1, 0]))
    assert found.values.tolist() == [[5, 6, 0], [0, 0, 0], [1, 2, 3]] and found.length.tolist() == [2, 0, 3]
    assert column.gather(torch.tensor([2]), 3).values.tolist() == [[4, 0, 0]]
    part = column.subset(torch.tensor([3, 0]))
    assert part.flat.tolist() == [5, 6, 1, 2, 3] and part.offsets.tolist() == [0, 2, 5]
    assert column.parts() != part.parts() and column.parts() == Ragged.of(sequences).parts()


@pytest.mark.parametrize("offsets", [[0, 2, 1, 3], [1, 3], [0, 2]])
def test_offsets_that_cut_nothing_are_refused(offsets):
    with pytest.raises(ValueError, match="Offsets must"):
        Ragged(torch.zeros(3), torch.tensor(offsets))


def test_sequences_are_padded_to_the_longest_of_all_processes():
    """Both halves of a batch have one shape, whichever holds the longest."""
    store = ArrayStore({"x": torch.zeros(3, 2), "c": Ragged.of([torch.ones(1), torch.ones(4), torch.ones(2)])})
    whole = torch.tensor([0, 2, 1])
    assert store.rows(whole[:2], whole)["c"].values.shape == (2, 4)
    assert store.rows(whole[:2])["c"].values.shape == (2, 2)


# --- One preparation at a time, whole or not at all -------------------------------------------------------------------


def ones(array: np.ndarray) -> dict:
    array[:] = 1
    return {}


def names_in(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_who_comes_second_waits_and_takes_what_the_first_has_made(tmp_path, caplog):
    """Threads stand for processes: the locks of two open files exclude each other within a process too."""
    entered, go_on, calls = threading.Event(), threading.Event(), []

    def slow(array):
        calls.append(1)
        entered.set()
        go_on.wait(60)
        return ones(array)

    results = []
    threads = [threading.Thread(target=lambda: results.append(cached_array("k", (2, 3), slow, tmp_path)))]
    threads[0].start()
    assert entered.wait(60)
    with caplog.at_level(logging.INFO, logger="genlab"):
        threads.append(threading.Thread(target=lambda: results.append(cached_array("k", (2, 3), slow, tmp_path))))
        threads[1].start()
        while "waiting" not in caplog.text and threads[1].is_alive():
            time.sleep(0.01)
        go_on.set()
        for thread in threads:
            thread.join(60)
    assert len(calls) == 1
    for array, note in results:
        assert array.sum() == 6
        assert note == results[0][1]
    assert names_in(tmp_path) == ["k.json", "k.npy"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a copy of the test's own process")
@pytest.mark.parametrize("memory_limit", [0, 2**20])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_killed_preparation_leaves_nothing_that_counts_and_the_next_one_cleans_up(memory_limit, tmp_path):
    def deadly(array):
        array[0] = 7
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        cached_array("k", (2, 3), deadly, tmp_path, memory_limit)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert [name for name in names_in(tmp_path) if name.endswith(".tmp")] != []  # or else this test tests nothing
    assert not list(tmp_path.glob("k.*"))
    (tmp_path / ".other.x.tmp").touch()  # of another set, whose preparation was killed long ago
    array, _ = cached_array("k", (2, 3), ones, tmp_path, memory_limit)
    assert array.sum() == 6
    assert names_in(tmp_path) == ["k.json", "k.npy"]


def test_leftovers_are_kept_while_somebody_works_on_them(tmp_path):
    working = store_module._lock(tmp_path, "other", wait=False)
    (tmp_path / ".other.x.tmp").touch()
    cached_array("k", (2, 3), ones, tmp_path)
    assert (tmp_path / ".other.x.tmp").exists()
    store_module._unlock(working, tmp_path, "other")
    cached_array("l", (2, 3), ones, tmp_path)
    assert names_in(tmp_path) == ["k.json", "k.npy", "l.json", "l.npy"]


def test_a_folder_without_locks_is_used_without_them(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(store_module.fcntl, "flock", refuse)
    array, _ = cached_array("k", (2, 3), ones, tmp_path)
    assert array.sum() == 6


def test_what_is_large_beside_the_free_memory_is_mapped(tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(store_module, "free_memory", lambda: 24)
    assert not isinstance(cached_array("k", (2, 3), ones, tmp_path)[0], np.memmap)
    assert isinstance(cached_array("l", (1, 7), ones, tmp_path)[0], np.memmap)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # two processes of this machine share its memory
    assert isinstance(cached_array("m", (2, 3), ones, tmp_path)[0], np.memmap)


def test_free_memory_is_the_machines_or_the_containers_rest(monkeypatch):
    files = {"/proc/meminfo": ["MemTotal:  9000 kB", "MemAvailable:  1000 kB"]}
    monkeypatch.setattr(store_module, "_lines", lambda path: files.get(path, []))
    assert store_module.free_memory() == 1000 * 1024
    group = "/sys/fs/cgroup/memory."
    files |= {group + "max": ["max"], group + "current": ["600"]}
    assert store_module.free_memory() == 1000 * 1024
    files |= {group + "max": ["1000"], group + "stat": ["inactive_anon 5", "inactive_file 200"]}
    assert store_module.free_memory() == 600
    files.clear()
    assert store_module.free_memory() == 16 * 2**30
