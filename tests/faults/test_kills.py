"""A run that is killed, wherever it is, goes on and ends with the weights of one that was left alone, bit for bit."""

import json
import os
import random
import subprocess
import sys

import pytest

from tests.cli.helpers import REPO, assert_identical, main, weights

TINY = ["trainer=cpu", "callbacks=none", "logger=csv", "metrics=none", "threads=1"]
POINTS = ["data=ring", "network.hidden=[16]", *TINY, "trainer.max_steps=12", "checkpoint.every_n_steps=4"]
DIGITS = [*TINY, "data.batch_size=16", "trainer.max_steps=10", "checkpoint.every_n_steps=3"]
SOME = {
    "one checkpoint is kept": [*POINTS, "checkpoint.keep=1"],
    "three are kept": [*POINTS, "checkpoint.keep=3"],
    "there are no hard links": [*POINTS, "checkpoint.keep=2"],
}
MORE = {
    **SOME,
    "dcgan": ["model=dcgan", "network.width=8", *DIGITS],
    "wgan_gp": ["model=wgan_gp", "network=mlp", *DIGITS, "checkpoint.keep=2"],
    "began": ["model=began", "network.width=8", *DIGITS],
    "vae": ["model=vae", *DIGITS, "speed.preset=fast"],
}


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """A function that runs `train.py` in a run folder; returns its exit code, points and output."""
    folder = tmp_path_factory.mktemp("kills")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.kills"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)},
    )

    def run(name, arguments, **job):
        job = {"folder": str(folder / name), "arguments": [*arguments, f"hydra.run.dir={name}"], **job}
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        return answer["code"], answer["points"], answer["log"]

    run.folder = folder
    yield run
    process.stdin.close()
    process.wait()
    process.stdout.close()


def kill_and_go_on(kills, train):
    """Kills runs at random points, every second one while something is written, and compares how they end.

    Args:
        kills: {composition: how many}, of `MORE`.
        train: From the fixture.

    Returns:
        The points: (composition, number, kind).
    """
    draw, done, folder = random.Random(20), [], train.folder
    for what, count in kills.items():
        links = what != "there are no hard links"
        alone = f"alone {what} {count}"
        code, points, log = train(alone, MORE[what], links=links)
        assert code == 0, log
        for k in range(count):
            kind = ("writing", "training")[len(done) % 2]
            number = draw.choice([i for i, found in enumerate(points) if found == kind])
            name = f"killed {what} {k} of {count}"
            code, _, log = train(name, MORE[what], kill_at=number, links=links)
            assert code == -9, log
            if k == 0:  # once more, while it goes on
                train(name, [*MORE[what], "resume=auto"], kill_at=number // 2, links=links)
            code, _, log = train(name, [*MORE[what], "resume=auto"], links=links)
            trained = code == 2 and "already been trained for its" in log  # it was killed when the last one was written
            assert (code == 0 or trained) and "Traceback" not in log, (what, number, log)
            assert_identical(weights(folder / alone), weights(folder / name), f"{what}, point {number}")
            assert trained or not list((folder / name).rglob("*.tmp")), (what, number)
            done.append((what, number, kind))
            print(what, f"point {number} of {len(points)} ({kind})", "identical")
    return done


def test_points_are_met_and_another_run_is_another(train):
    """What kills is at work: all parts of a write are points; and the comparison can fail."""
    one = SOME["one checkpoint is kept"]
    code, points, _ = train("a", one)
    assert code == 0 and points.count("writing") > 20 and points.count("training") > 24
    assert train("b", [*one, "seed=1"])[0] == 0
    with pytest.raises(AssertionError):
        assert_identical(weights(train.folder / "a"), weights(train.folder / "b"))


def test_a_run_killed_anywhere_ends_as_one_left_alone(train):
    assert len(kill_and_go_on(dict.fromkeys(SOME, 2), train)) == 6


def test_a_run_killed_in_its_set_up_is_resumed_by_its_folder(train):
    """Before anything but its command is written, too, and once more while it is resumed."""
    one = SOME["one checkpoint is kept"]
    code, points, _ = train("alone in its set-up", one)
    # The first two: the command line is checked before there is a folder.
    numbers = [i for i, kind in enumerate(points) if kind == "set-up"][2:]
    assert code == 0 and len(numbers) == 18  # Hydra's three files, the config, the parts and the data
    for number in (numbers[0], numbers[-1]):
        name = f"killed in its set-up at {number}"
        assert train(name, one, kill_at=number)[0] == -9
        assert not (train.folder / name / "config.yaml").exists()
        if number == numbers[0]:
            assert train(name, [f"resume={name}"], kill_at=number)[0] == -9
        code, _, log = train(name, [f"resume={name}"])
        assert code == 0 and "stopped in its set-up, so it starts from the beginning" in log, log
        assert_identical(weights(train.folder / "alone in its set-up"), weights(train.folder / name), name)


def test_a_folder_without_a_command_is_one_sentence(tmp_path, monkeypatch, capsys):
    """Of an older genlab, or of a sweep: Hydra does not write whole files."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    (run / ".hydra").mkdir(parents=True)
    for text in ("", "hydra:\n  overrides: {}\n", "hydra: [\n"):
        (run / ".hydra" / "hydra.yaml").write_text(text)
        assert main(monkeypatch, "resume=run") == 2
        assert "run was stopped before its command was saved. Give the command again, with hydra.run.dir=run" in (
            capsys.readouterr().err
        )
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "multirun.yaml").write_text("hydra:\n  launcher: {}\n")
    assert main(monkeypatch, "resume=sweep") == 2
    assert "with hydra.sweep.dir=sweep" in capsys.readouterr().err


@pytest.mark.slow
def test_twenty_kills(train):
    kills = {**dict.fromkeys(SOME, 4), **{what: 2 for what in MORE if what not in SOME}}
    assert len(kill_and_go_on(kills, train)) == 20
