"""Sentences from a file go through every door with a model from outside: trained, drawn, written, resumed."""

import numpy as np
import pytest
import torch

import genlab
from genlab.batch import Seq, joined
from genlab.cli.sample import read_options, sample
from genlab.runs.folder import find_run, read_config
from genlab.runs.start import train
from tests.cli.helpers import assert_identical, weights
from tests.models.helpers import config

ALLOWED = "allow_targets=[tests.fields.sentences.*]"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Sentences of "a" (three of four words), "b" and "c", and the folder of a run of 100 iterations on them."""
    folder = tmp_path_factory.mktemp("sentences")
    rng = np.random.RandomState(0)
    lines = [" ".join(rng.choice(["a", "b", "c"], rng.randint(1, 6), p=[0.75, 0.15, 0.1])) for _ in range(400)]
    (folder / "lines.txt").write_text("\n".join(lines) + "\n")
    words = {"size": 4, "most": 5}
    overrides = [
        "ema.decay=0",
        "data=text",
        f"data.root={folder / 'lines.txt'}",
        "data.columns.x.size=4",
        "data.columns.x.most=5",
    ]
    adam = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.05}
    model = {"_target_": "tests.fields.sentences.Unigram", **words, "optimizer": adam}
    train({**config(overrides, 100), "model": model}, folder / "run")
    return folder / "run"


def test_the_words_are_learned_and_saved_with_the_run(run):
    model = genlab.load(run, allow_targets=("tests.fields.*",))
    assert model.spec.x.names == ("<unk>", "a", "b", "c")
    p = model.log_words().exp()
    assert p[0] < 0.02 and abs(p[1] - 0.75) < 0.05 and abs(p[2] - 0.15) < 0.05


def test_sentences_are_drawn_in_every_form(run):
    def drawn(form, n=300):
        return sample(read_options([f"run={run}", f"n={n}", f"format={form}", ALLOWED]))

    lines = drawn("files").read_text().splitlines()
    assert len(lines) == 300 and {word for line in lines for word in line.split()} <= {"<unk>", "a", "b", "c"}
    with np.load(drawn("npz")) as arrays:
        x, offsets = arrays["x"], arrays["x_offsets"]
    assert (
        offsets[0] == 0 and offsets[-1] == len(x) and np.diff(offsets).tolist() == [len(line.split()) for line in lines]
    )
    assert drawn("grid", 9).suffix == ".png"


def test_a_resumed_run_of_sequences_is_the_same(run, tmp_path):
    whole = {**read_config(run), "allow_targets": ["tests.fields.sentences.*"]}
    train({**whole, "trainer": {**whole["trainer"], "max_steps": 30}}, tmp_path / "run")
    checkpoint = find_run(str(tmp_path / "run"))[1]
    train(whole, tmp_path / "run", resume=checkpoint)
    assert_identical(weights(tmp_path / "run"), weights(run))


def test_rows_of_sequences_are_joined_one_after_the_other():
    parts = [
        Seq(torch.tensor([[1, 2], [3, 0]]), torch.tensor([2, 1])),
        Seq(torch.tensor([[4, 5, 6]]), torch.tensor([3])),
    ]
    whole = joined(parts)
    assert whole.values.tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6]] and whole.length.tolist() == [2, 1, 3]
