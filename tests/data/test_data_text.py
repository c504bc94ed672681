"""Sentences in text files: splits, vocabulary, labels, mistakes."""

import logging

import pytest
import torch

from genlab.config.checks import check
from genlab.config.composition import compose
from genlab.config.instantiate import instantiate
from genlab.data.spec import DataSpec
from genlab.data.text import Text
from genlab.errors import UserError

SPLITS = ("train", "val", "test")
LINES = [f"only{i} common" for i in range(20)]


def write(folder, **files):
    """A folder of text files; "train_txt" is train.txt."""
    folder.mkdir(exist_ok=True)
    for name, lines in files.items():
        (folder / name.replace("_", ".")).write_text("".join(f"{line}\n" for line in lines))
    return folder


def text(root, **arguments):
    return Text(root=root, **{"batch_size": 4, "columns": {"x": {"size": None, "most": None}}, **arguments})


def limited(size=None, most=None):
    return {"x": {"size": size, "most": most}}


def sentences(data, split):
    store = data.split(split)
    return data.spec.x.text(store.gather(torch.arange(len(store))))


def test_batches_hold_the_sentences_padded_with_zeros(tmp_path):
    root = write(tmp_path / "set", train_txt=["b a b", "c"], valid_txt=["b d b"], test_txt=["  a\tb  "])
    data = text(root, batch_size=2)
    batch = data.stream().batch(0)
    order = batch["index"].tolist()
    x = batch["x"]
    assert sorted(order) == [0, 1] and x.values.dtype == torch.int64
    # "b" is the most frequent word; equally frequent ones follow the alphabet; "<unk>" is first as training has none.
    assert data.spec.x.names == ("<unk>", "b", "a", "c") and data.spec.x.size == 4 and data.spec.x.most == 3
    assert x.values[order.index(0)].tolist() == [1, 2, 1] and x.values[order.index(1)].tolist() == [3, 0, 0]
    assert x.length.tolist() == [[3, 1][row] for row in order]
    assert x.mask[order.index(1)].tolist() == [True, False, False]
    assert sentences(data, "val") == ["b <unk> b"] and sentences(data, "test") == ["a b"]
    assert data.split("val").columns["x"].flat.dtype == torch.int32
    assert DataSpec.from_dict(data.spec.to_dict()) == data.spec  # as checkpoints keep it


def test_the_vocabulary_of_a_cut_file_is_that_of_its_training_part(tmp_path):
    write(tmp_path, all_txt=LINES)
    data = text(tmp_path / "all.txt")
    assert {split: len(data.split(split)) for split in SPLITS} == {"train": 16, "val": 2, "test": 2}
    train = sentences(data, "train")
    assert len(set(train)) == 16 and set(train) <= set(LINES)
    assert data.spec.x.names == ("<unk>", "common", *sorted(line.split()[0] for line in train))
    assert sentences(data, "val") == sentences(data, "test") == 2 * ["<unk> common"]
    assert data.name == "text-all"
    other = text(tmp_path / "all.txt", seed=5, batch_size=2)
    assert other.describe()["fingerprint"] == data.describe()["fingerprint"]


def test_the_size_cuts_the_rarest_words_off_and_must_be_that_of_the_files(tmp_path):
    root = write(tmp_path / "set", train_txt=["a a a b b c", "c d"], valid_txt=["a d"], test_txt=["b"])
    data = text(root, columns=limited(size=3))
    assert sentences(data, "train") == ["a a a b b <unk>", "<unk> <unk>"] and sentences(data, "val") == ["a <unk>"]
    assert data.spec.x.names == ("<unk>", "a", "b")
    with pytest.raises(UserError, match=r"data.columns.x.size is 9, and text-set has 5. Try data.columns.x.size=5"):
        text(root, columns=limited(size=9)).setup()


def test_an_unk_of_the_files_is_the_word_for_unknown_ones(tmp_path):
    root = write(tmp_path / "set", train_txt=["a <unk> a", "b c c"], valid_txt=["z a"], test_txt=["b"])
    data = text(root)
    assert sentences(data, "val") == ["<unk> a"] and data.spec.x.names == ("a", "c", "<unk>", "b")
    assert data.spec.x.size == 4
    few = text(root, columns=limited(size=2))
    assert sentences(few, "train") == ["a <unk> a", "<unk> <unk> <unk>"] and set(few.spec.x.names) == {"a", "<unk>"}


def test_few_training_sentences_keep_the_vocabulary_of_all(tmp_path):
    write(tmp_path, all_txt=LINES)
    few = text(tmp_path / "all.txt", limit_train=5)
    assert len(few.split("train")) == 5
    assert few.spec.x.names == text_names(tmp_path / "all.txt")


def text_names(path):
    data = text(path)
    data.setup()
    return data.spec.x.names


def test_ends_of_names_are_labels(tmp_path):
    files = {f"style_{split}_{end}": [f"{split} {end} {i}" for i in range(3)] for split in SPLITS for end in (0, 1)}
    root = write(tmp_path / "set", **files, reference_0=["not read"], README=["nor this"])
    data = text(root, num_classes=2, num_labelled=2)
    for split in SPLITS:
        labels = data.split(split).y.tolist()
        assert labels == [0, 0, 0, 1, 1, 1]
    assert sentences(data, "train") == [f"train {end} {i}" for end in (0, 1) for i in range(3)]
    assert data.spec.class_names == ("0", "1")
    assert (data.training_store().y >= 0).sum() == 2
    named = text(root, class_names=["sad", "glad"])
    assert named.stream().batch(0).y is not None and named.spec.class_names == ("sad", "glad")
    assert text(root, labels=False, num_classes=2).stream().batch(0).y is None
    for arguments, sentence in (
        ({"class_names": ["a", "b", "c"]}, r"has the classes 0, 1, got data.class_names=\['a', 'b', 'c'\]"),
        ({"num_classes": 3}, "has 2 classes, got data.num_classes=3"),
    ):
        with pytest.raises(UserError, match=sentence):
            text(root, **arguments).setup()


def test_negative_and_positive_sentences_without_splits(tmp_path):
    root = write(tmp_path / "set", rt_neg=["bad"] * 10, rt_pos=["good"] * 10, readme_txt=["no sentence"])
    data = text(root)
    assert data.spec.num_classes is None
    data.setup()
    assert data.spec.class_names == ("neg", "pos")
    for split, n in zip(SPLITS, (16, 2, 2), strict=True):
        assert sentences(data, split) == [("bad", "good")[y] for y in data.split(split).y.tolist()]
        assert len(data.split(split)) == n


def test_sentences_of_a_file_without_such_an_end_have_no_label(tmp_path):
    ends = {f"train_{end}": ["a"] for end in range(11)}
    root = write(tmp_path / "set", **ends, train_txt=["b"], dev_txt=["a"], test_txt=["a"])
    data = text(root)
    assert data.split("train").y.tolist() == [0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9, -1]  # in the order of the files
    assert data.spec.class_names == tuple(map(str, range(11))) and data.split("val").y.tolist() == [-1]


def test_splits_are_chosen_by_parts_of_names(tmp_path):
    root = write(tmp_path / "set", s_dev_0=["a"], s_dev_1=["b"], s_test_0=["c"] * 10, s_test_1=["d"] * 10)
    with pytest.raises(
        UserError, match=r"no file for training, only s.dev.0, s.dev.1, .*data.splits=\{train: test, test: dev\}"
    ):
        text(root).setup()
    data = text(root, splits={"train": "test", "test": "dev"})
    assert {split: len(data.split(split)) for split in SPLITS} == {"train": 18, "val": 2, "test": 2}
    assert data.split("test").y.tolist() == [0, 1] and set(sentences(data, "train")) == {"c", "d"}
    both = text(root, splits={"train": "test", "val": "dev", "test": "dev"})
    assert {split: len(both.split(split)) for split in SPLITS} == {"train": 20, "val": 2, "test": 2}
    with pytest.raises(UserError, match="data.splits.val=valid is no part of a name in .*; there are s.dev.0"):
        text(root, splits={"train": "test", "val": "valid"}).setup()
    with pytest.raises(UserError, match="data.splits must name parts of file names for train"):
        text(root, splits={"val": "dev"})
    with pytest.raises(UserError, match="data.splits must name parts of file names for train"):
        text(root, splits={"train": "dev", "valid": "test"})
    with pytest.raises(UserError, match="data.splits chooses files of a folder"):
        text(root / "s.dev.0", splits={"train": "dev"}).setup()


def test_two_corpora_in_one_folder_are_not_mixed(tmp_path):
    """As in Mikolov's simple-examples, where ptb.char.train.txt lies beside ptb.train.txt."""
    root = write(tmp_path / "set", ptb_char_train_txt=["w"], ptb_train_txt=["word"], ptb_valid_txt=["a"])
    with pytest.raises(
        UserError, match=r"several files for train: ptb.char.train.txt, ptb.train.txt.*\{train: ptb.char.train.txt\}"
    ):
        text(root).setup()
    chosen = text(root, splits={"train": "ptb.train", "val": "ptb.valid", "test": "ptb.valid"})
    assert sentences(chosen, "train") == ["word"]
    joined = text(root, splits={"train": "train", "val": "valid", "test": "valid"})
    assert sentences(joined, "train") == ["w", "word"]


def test_a_word_within_a_word_is_no_split(tmp_path):
    root = write(tmp_path / "set", contest_txt=["a"] * 5, constrain_txt=["b"] * 5)
    assert {split: len(text(root).split(split)) for split in SPLITS} == {"train": 8, "val": 1, "test": 1}


def test_characters(tmp_path):
    write(tmp_path, play_txt=["To be,", "or not"] * 10)
    data = text(tmp_path / "play.txt", level="character")
    assert set(sentences(data, "train")) == {"To be,", "or not"}
    assert data.spec.x.names[0] == "<unk>" and set(data.spec.x.names[1:]) == set("To be,or not")
    assert data.spec.x.separator == "" and data.spec.x.most == 6
    low = text(tmp_path / "play.txt", level="character", lowercase=True)
    assert set(sentences(low, "train")) == {"to be,", "or not"}
    assert text(tmp_path / "play.txt").spec.x.separator == " "


def test_lines_of_windows_marks_of_utf8_and_empty_lines(tmp_path, caplog):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "x \u2028 y\x0bz\r\n\r\n   \r\n".encode() * 10)
    with caplog.at_level(logging.INFO, logger="genlab"):
        data = text(path)
        assert set(sentences(data, "train")) == {"x y z"}
    assert sum(len(data.split(split)) for split in SPLITS) == 10
    assert caplog.messages == ["20 of the 30 sentences of text-a are empty and left out."]


def test_longer_sentences_are_left_out(tmp_path, caplog):
    root = write(tmp_path / "set", train_txt=["a", "a b", "a b c"], valid_txt=["a b c d", "a"], test_txt=["b"])
    data = text(root, columns=limited(most=2))
    with caplog.at_level(logging.INFO, logger="genlab"):
        assert sentences(data, "train") == ["a", "a b"] and sentences(data, "val") == ["a"]
    assert caplog.messages == [
        "2 of the 6 sentences of text-set have more than data.columns.x.most=2 words and are left out."
    ]
    assert data.spec.x.names == ("<unk>", "a", "b") and data.spec.x.most == 2
    assert text(root, columns=limited(most=7)).spec.x.most == 7  # as it was stated, though the longest has four
    with pytest.raises(UserError, match="no sentences for train of at most 0 words; try data.columns.x.most=null"):
        text(root, columns=limited(most=0)).setup()


def test_files_of_another_encoding(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("one\ntwo\nvoilà\n".encode("latin-1") + b"x\n" * 10)
    with pytest.raises(UserError, match=r"a.txt is not written in utf-8: line 3 holds 0xe0. Try data.encoding=latin-1"):
        text(path).setup()
    path.write_bytes("voilà\n".encode("latin-1") * 10)
    assert set(sentences(text(path, encoding="latin-1"), "train")) == {"voilà"}
    path.write_bytes(("word\n" * 10).encode("utf-16"))
    with pytest.raises(UserError, match="is not written in utf-8: line 1 holds 0xff"):
        text(path).setup()
    assert set(sentences(text(path, encoding="utf-16"), "train")) == {"word"}
    path.write_bytes(b"w\0o\0")
    with pytest.raises(UserError, match="holds zero bytes, so it is no text"):
        text(path).setup()
    with pytest.raises(UserError, match="a.txt cannot be read"):
        text(path, encoding="hex").setup()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"root": None}, "text needs its files: set data.root=PATH to a text file, or a folder"),
        ({"root": "nowhere"}, "data.root=.*nowhere does not exist; set it to a text file"),
        ({"root": "."}, "There is no text in .*; set data.root to a text file"),
        ({"root": "empty.txt"}, "text-empty in .* has no sentences"),
        ({"root": "few.txt"}, "text-few has 2 samples, too few to cut off val and test"),
        ({"root": "few.txt", "num_classes": 2}, "text-few has no classes, got 2: .*data.num_classes=null"),
        ({"root": "few.txt", "download": True}, "text-few cannot be downloaded; set data.root=PATH"),
        ({"level": "letter"}, "data.level must be one of word, character, got 'letter'"),
        ({"encoding": "klingon"}, "data.encoding=klingon is unknown; try utf-8"),
        ({"columns": {"x": {"size": 1}}}, "data.columns.x.size must be at least 2 words, got 1"),
        ({"shape": [7]}, r"text has samples of shape \[None\], got data.shape=\[7\]"),
        ({"kind": "image"}, "samples of kind 'tokens', got data.kind='image'"),
        ({"class_names": ["a"], "num_classes": 2}, "has 1 classes, got data.num_classes=2"),
    ],
)
def test_mistakes_are_said_in_a_sentence(arguments, message, tmp_path):
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder", empty_log=["x"])
    (tmp_path / "folder" / "sub").mkdir()
    write(tmp_path / "files", empty_txt=["", " "], few_txt=["a", "b"])
    if isinstance(arguments.get("root"), str):
        root = tmp_path / ("folder" if arguments["root"] == "." else "files") / arguments["root"]
        arguments = {**arguments, "root": root}
    with pytest.raises(UserError, match=message):
        Text(**{"batch_size": 4, **arguments}).prepare_data()


# --- Configs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["text", "ptb", "sentiment", "sketches", "chorales", "wav", "spoken_digits"])
def test_models_for_other_kinds_are_refused_before_files_are_read(name):
    config = compose(["model=gan", f"data={name}"])
    with pytest.raises(UserError, match=f"network=mlp is for data of kind image or points, and data={name} is of kind"):
        check(config)
    assert instantiate(config["data"]).spec.x.kind == config["data"]["kind"]


# --- Real files -------------------------------------------------------------------------------------------------------


def configured(*overrides):
    data = instantiate(compose(list(overrides))["data"])
    data.setup()
    return data, {split: len(data.split(split)) for split in SPLITS}


def test_penn_treebank(unpacked):
    data, sizes = configured("data=ptb", f"data.root={unpacked('ptb') / 'ptb'}")
    assert sizes == {"train": 42068, "val": 3370, "test": 3761} and data.name == "ptb"
    assert data.spec.x.size == 9999 and data.spec.x.most == 82
    words = sum(len(data.split(split).columns["x"].flat) + sizes[split] for split in SPLITS)
    assert words == 929589 + 73760 + 82430  # as published, with the end of each sentence
    assert sentences(data, "test")[0] == "no it was n't black monday"


def test_yelp_without_its_training_files(unpacked):
    root = unpacked("yelp-sentiment") / "yelp-sentiment"
    with pytest.raises(UserError, match="no file for training"):
        configured("data=sentiment", f"data.root={root}")
    data, sizes = configured("data=sentiment", f"data.root={root}", "data.splits={train: test, test: dev}")
    assert sizes == {"train": 114003, "val": 12667, "test": 63483}
    assert data.split("test").y.bincount().tolist() == [25278, 38205]
    both = data.split("train").y.bincount() + data.split("val").y.bincount()
    assert both.tolist() == [50278, 76392] and data.spec.x.most == 15


def test_captions_in_two_styles(unpacked):
    root = unpacked("imagecaption-style") / "imagecaption-style"
    named = "data.class_names=[humorous,romantic]"
    with pytest.raises(UserError, match=r"sentiment.train.1 is not written in utf-8: line 4178 .*latin-1"):
        configured("data=sentiment", f"data.root={root}")
    data, sizes = configured("data=sentiment", f"data.root={root}", "data.encoding=latin-1", named)
    assert sizes == {"train": 12000, "val": 1000, "test": 600}
    assert data.split("train").y.bincount().tolist() == [6000, 6000]
    assert data.spec.class_names == ("humorous", "romantic")


def test_movie_reviews(unpacked):
    data, sizes = configured("data=text", f"data.root={unpacked('rt-polarity') / 'rt-polarity'}")
    assert sizes == {"train": 8530, "val": 1066, "test": 1066}
    assert sum(data.split(split).y.bincount() for split in SPLITS).tolist() == [5331, 5331]
    assert data.spec.class_names == ("neg", "pos")


def test_shakespeare_by_characters(shared_data):
    path = shared_data / "tinyshakespeare.txt"
    if not path.is_file():
        pytest.skip(f"real data not found: {path}")
    data, sizes = configured("data=text", f"data.root={path}", "data.level=character")
    assert sum(sizes.values()) == 32777  # of 40,000 lines, the others are empty
    assert data.spec.x.size == 65  # 64 characters of a line, and "<unk>"
    assert sum(len(data.split(split).columns["x"].flat) for split in SPLITS) == 1115394 - 40000
