"""`scripts/evaluate.py`: scores of runs and of images that anything made, and what it must leave alone."""

import hashlib
import json
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import genlab
from genlab.cli import evaluate, train_classifier
from genlab.cli.evaluate import evaluate_images, evaluate_run
from genlab.config.composition import compose
from genlab.config.instantiate import instantiate
from genlab.data.columns import Rows
from genlab.data.image_sets import load_image_sets
from genlab.errors import UserError
from genlab.extractors.choice import dataset_classifier
from genlab.judging.cards import differences
from genlab.judging.judge import Judge, take
from genlab.judging.measure import Settings, chosen
from genlab.judging.records import find_runs, rows
from genlab.judging.subject import Subject
from genlab.models.base import GenerativeModel, inference
from genlab.reports import report
from genlab.runs.folder import load_data
from genlab.runs.start import train
from genlab.sampling.prior import Prior
from genlab.seeding import fixed_choice
from tests.cli.helpers import command, on_two_processes

QUICK = ["trainer.max_steps=3", "callbacks=none", "logger=csv"]


@pytest.fixture(scope="module", autouse=True)
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A GAN on digits, a VAE on grey and one on binary digits, a GAN on points; three iterations each."""
    folder = tmp_path_factory.mktemp("runs")
    for name, overrides in {
        "gan": [],
        "grey": ["model=vae"],
        "binary": ["model=vae", "data.binarize=static", "metrics=none"],
        "gauss": ["model=vae", "likelihood=gaussian", "metrics=none"],
        "ring": ["data=ring"],
    }.items():
        train(compose([*overrides, *QUICK]), folder / name)
    return folder


@pytest.fixture(scope="module")
def gan_record(runs):
    return evaluate_run(runs / "gan")


def contents(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


def states():
    name, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), (name, keys.tolist(), *rest), random.getstate()


# --------------------------------------------------------------------------------------------------------------- a run
def test_a_run_gets_all_scores_with_their_cards(runs, gan_record):
    record = json.loads((runs / "gan" / "scores" / "test-classifier-digits-seed2020.json").read_text())
    assert {k: record[k] for k in record} == {k: gan_record[k] for k in record}
    names = {name.partition("/")[0] for name in record["scores"]}
    assert {"fid", "is", "is_std", "is_real", "kid", "kid_std", "precision", "recall", "density", "coverage"} <= names
    assert {"ms_ssim", "ms_ssim_real", "ms_ssim_noised", "ms_ssim_within", "nn_ratio", "rarest_class"} <= names
    card = record["cards"][record["group"]["fid/classifier-digits"]]
    wanted = {"n_real": 359, "n_fake": 359, "split": "test", "resize": "none", "seed": 2020, "ema": True}
    assert wanted.items() <= card.items() and card["test_accuracy"] > 0.9 and len(card["checksum"]) == 64
    assert {"fingerprint", "binarize", "genlab", "protocol", "sampler", "data"} <= card.keys()
    assert record["checkpoint"]["iteration"] == 3 and record["checkpoint"]["file"] == "last.ckpt"


def test_the_figures_are_the_runs_own(runs, gan_record):
    """Same latents, same test images, same judge: what the run printed, to the last digits, under the same card."""
    own = json.loads((runs / "gan" / "run.json").read_text())
    for name in ("fid/classifier-digits", "is/classifier-digits", "is_real/classifier-digits"):
        assert gan_record["scores"][name] == pytest.approx(own["scores"][f"test/{name}"], rel=1e-9)
    for name in own["about"]:
        assert gan_record["cards"][gan_record["group"][name]] == own["cards"][own["group"][name]]
        assert gan_record["about"][name] == own["about"][name]


def test_nothing_is_touched_but_the_scores(runs, gan_record):
    before, random_states = contents(runs / "gan"), states()
    torch.manual_seed(5)
    random_states = states()
    evaluate_run(runs / "gan", {"seed": 7, "scores": ["fid", "is", "kid", "pr", "ms_ssim", "nn"]})
    assert states() == random_states
    after = contents(runs / "gan")
    new = after.keys() - before.keys()
    assert new == {"scores/test-classifier-digits-seed7.json"}
    assert {name: after[name] for name in before} == before
    model = genlab.load(runs / "gan")
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    model.sample(40, rng=torch.Generator().manual_seed(0))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in weights.items())


def test_a_seed_is_a_repetition_and_repeats(runs, gan_record):
    wanted = {"scores": ["fid", "kid"]}
    other, again = (evaluate_run(runs / "gan", {**wanted, "seed": 8}) for _ in range(2))
    assert other["scores"] == again["scores"]
    name = "fid/classifier-digits"
    assert other["scores"][name] != gan_record["scores"][name]
    assert differences([other["cards"]["fid"], gan_record["cards"]["fid"]]) == []
    few = evaluate_run(runs / "gan", {**wanted, "n": 100, "seed": 9})
    assert differences([few["cards"]["fid"], gan_record["cards"]["fid"]]) == ["n_fake", "n_real"]


def test_scores_taken_later_join_those_of_the_same_checkpoint(runs):
    first = evaluate_run(runs / "gan", {"scores": ["fid"], "seed": 11})
    both = evaluate_run(runs / "gan", {"scores": ["ms_ssim"], "seed": 11})
    assert "fid/classifier-digits" in first["scores"] and "ms_ssim" not in first["scores"]
    assert {"fid/classifier-digits", "ms_ssim"} <= both["scores"].keys()
    assert both["cards"]["fid"] == first["cards"]["fid"]


def test_real_statistics_are_extracted_once(runs, monkeypatch):
    from genlab.judging import subject

    def refuse(*_, **__):
        raise AssertionError("the statistics should come from the cache")

    evaluate_run(runs / "gan", {"scores": ["fid"], "seed": 12})
    features_of = subject.features_of
    calls = []
    monkeypatch.setattr(subject, "features_of", lambda *of: calls.append(of) or features_of(*of))
    evaluate_run(runs / "gan", {"scores": ["fid"], "seed": 13})
    assert len(calls) == 1  # of the samples alone
    monkeypatch.setattr(subject, "features_of", refuse)
    with pytest.raises(AssertionError, match="cache"):  # other images are other statistics
        evaluate_run(runs / "gan", {"scores": ["fid"], "seed": 13, "n": 77})


def test_likelihood_and_reconstruction(runs, monkeypatch):
    options = {"scores": ["likelihood", "reconstruction"], "iwae_samples": 20, "likelihood_images": 60}
    looked_at, find = [], Subject.rows
    monkeypatch.setattr(Subject, "rows", lambda *of: looked_at.append(find(*of)) or looked_at[-1])
    binary = evaluate_run(runs / "binary", options)
    scores = binary["scores"]
    assert any(torch.equal(rows, fixed_choice(359, 60)) for rows in looked_at)  # the first may be of one class
    assert scores["elbo"] == pytest.approx(scores["elbo_recon"] - scores["elbo_kl"])
    assert scores["elbo"] < scores["iwae_20"] < 0 and scores["iwae_20_se"] > 0
    assert scores["bits_per_dim"] == pytest.approx(-scores["iwae_20"] / (64 * np.log(2)))
    assert {"recon_mse", "recon_psnr", "recon_ssim"} <= scores.keys()
    card = binary["cards"][binary["group"]["iwae_20"]]
    assert card["iwae_samples"] == 20 and card["n_real"] == 60 and card["binarize"] == "static"
    grey = evaluate_run(runs / "grey", options)
    assert not any(name.startswith(("elbo", "iwae", "bits")) for name in grey["scores"])
    assert "objective" in grey["scores"] and "no likelihood" in grey["notes"][0]
    assert "rfid/classifier-digits" in grey["scores"] and 0 < grey["scores"]["recon_features/classifier-digits"] < 2
    gauss = evaluate_run(runs / "gauss", options)
    assert gauss["cards"][gauss["group"]["elbo"]]["dequantised"] == "uniform" and gauss["scores"]["bits_per_dim"] > 0


def test_points_stand_beside_a_perfect_generator(runs):
    record = evaluate_run(runs / "ring")
    scores = record["scores"]
    assert scores["modes_real"] == 8 and 0.97 < scores["hq_real"] <= 1 and scores["kl_modes_real"] < 0.01
    assert abs(scores["energy_real"]) < 0.05 < scores["energy"]
    beside = {name: text for name, _, text, _ in rows(record)}
    assert beside["modes"] == "perfect 8, of 8" and beside["hq"].startswith("perfect 0.98")


def test_several_runs_go_on_after_a_broken_one(runs, tmp_path, monkeypatch, capsys):
    for name in ("0", "1", "2"):
        shutil.copytree(runs / "ring", tmp_path / "many" / name, ignore=shutil.ignore_patterns("scores"))
    (tmp_path / "many" / "2" / "checkpoints" / "last.ckpt").write_bytes(b"nothing")
    assert [p.name for p in find_runs([str(tmp_path / "many")])] == ["0", "1", "2"]
    monkeypatch.setattr("sys.argv", ["evaluate.py", f"run={tmp_path / 'many'}"])
    with pytest.raises(SystemExit) as stopped:
        evaluate.main()
    printed = capsys.readouterr()
    assert stopped.value.code == 2 and "1 of 3 runs could not be scored" in printed.err and "damaged" in printed.err
    assert "energy distance (lower is better)" in printed.out
    assert len(list((tmp_path / "many").glob("*/scores/test-points-seed2020.json"))) == 2


def test_another_checkpoint_has_another_file(runs, tmp_path):
    run = shutil.copytree(runs / "ring", tmp_path / "run")
    shutil.copy(run / "checkpoints" / "last.ckpt", run / "checkpoints" / "best.ckpt")
    assert evaluate_run(run / "checkpoints" / "best.ckpt")["file"].endswith("test-points-seed2020-best.json")


# ------------------------------------------------------------------------------------------------- how it is drawn from
def test_a_sampler_is_on_the_card_and_in_the_file_name(runs, tmp_path):
    other, plain = (
        shutil.copytree(runs / "gan", tmp_path / name, ignore=shutil.ignore_patterns("scores"))
        for name in ("other", "plain")
    )
    options = {"scores": ["fid"], "sampler": "truncated", "sampler_settings": {"threshold": 0.5}}
    record, prior = evaluate_run(other, options), evaluate_run(plain, {"scores": ["fid"]})
    assert record["file"].endswith("test-classifier-digits-seed2020-truncated-threshold=0.5.json")
    name = "fid/classifier-digits"
    mine, theirs = record["cards"]["fid"], prior["cards"]["fid"]
    assert mine["sampler"] == "truncated(threshold=0.5, psi=null)" and theirs["sampler"] == "prior"
    assert differences([mine, theirs]) == ["sampler"] and record["scores"][name] != prior["scores"][name]
    assert report.collect([str(plain), str(other)]).refusals == [
        "FID (classifier-digits) is not ranked: the cards differ in sampler (truncated in other, prior in plain)."
    ]
    wider = evaluate_run(other, {**options, "sampler_settings": {"threshold": 0.7}})["cards"]["fid"]
    words = evaluate.refusal(
        prior["about"][name]["title"], {"A": mine, "B": wider}
    )  # the same sampler with another setting
    assert words is not None and "threshold=0.5" in words and "threshold=0.7" in words


def test_a_sampler_that_is_fitted_to_images(runs, tmp_path):
    """Real images reach the fit as the model knows them, not as bytes."""
    run = shutil.copytree(runs / "gan", tmp_path / "run", ignore=shutil.ignore_patterns("scores"))
    small = {"d_steps": 2, "burn_in": 100, "batch_size": 64, "data_samples": 200}
    options = {"scores": ["fid"], "n": 40, "sampler": "drs", "sampler_settings": small}
    first, again = (evaluate_run(run, options) for _ in range(2))  # the second takes the kept fit
    assert first["scores"] == again["scores"] and len(list((run / "samplers").iterdir())) == 1


class OfClass(GenerativeModel):
    """Images that are as bright as the class that was asked for."""

    given = ("y",)

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    @inference
    def sample(self, n, given=None, rng=None):
        y = given.y
        assert y.shape == (n,)
        return (y / 4.5 - 1).view(-1, 1, 1, 1) * self.scale + 0.02 * self.randn(n, 1, 8, 8, rng=rng)


def test_a_model_of_classes_is_asked_for_the_real_ones(runs):
    """With their frequencies, from the seed; in a run's own scores too."""
    data = load_data(genlab.load(runs / "gan").run_config)
    classifier = dataset_classifier(data, torch.device("cpu"))
    jobs = [
        Subject(OfClass(), data, "test", Settings(seed=seed), lambda: classifier, Prior) for seed in (2020, 2020, 2021)
    ]
    images = [job.fake(3000) for job in jobs]
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])
    asked = torch.bincount((images[0].float().mean(dim=(1, 2, 3)) / (255 / 9)).round().long(), minlength=10)
    wanted = torch.bincount(data.split("test").y, minlength=10) / len(data.split("test"))
    assert ((asked - 3000 * wanted).square() / (3000 * wanted)).sum() < 27.9  # chi-square of 9, one in a thousand
    assert take(jobs[0], chosen(["fid"])).cards["fid"]["given"] == "y of rows of the split"
    judge = Judge(["fid", "is"], num_samples=100)
    assert judge.final(OfClass(), data)["test/rarest_class/classifier-digits"] >= 0
    assert judge.found.cards["rarest_class"]["given"] == "y of rows of the split"
    unlabelled = load_data(genlab.load(runs / "gan").run_config)
    unlabelled.split("test").columns["y"] = Rows(torch.full_like(unlabelled.split("test").y, -1))
    with pytest.raises(UserError, match="digits has no row of the test split in which y is known"):
        Subject(OfClass(), unlabelled, "test", Settings(), lambda: classifier, Prior).fake(30)


# ------------------------------------------------------------------------------------------------------- two processes
@pytest.fixture(scope="module")
def two(runs, tmp_path_factory):
    """Scored by two processes, and trained and judged by two, in one start of them."""
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(runs / "gan", folder / "gan", ignore=shutil.ignore_patterns("scores"))
    shutil.copytree(runs / "binary", folder / "binary", ignore=shutil.ignore_patterns("scores"))
    x = torch.randint(0, 256, (600, 8, 8, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    np.savez(folder / "real.npz", x=x[:310], y=np.arange(310) % 2)
    np.savez(folder / "fake.npz", x=x[310:])
    scorings = [
        [f"run={folder / 'gan'}", "scores=[fid,is,kid,pr,nn]", "seed=5", f"out={folder / 'two_gan'}"],
        [f"run={folder / 'binary'}", "scores=[likelihood,reconstruction]", *LIKELIHOOD, f"out={folder / 'two_vae'}"],
        [
            f"real={folder / 'real.npz'}",
            f"fake={folder / 'fake.npz'}",
            "scores=[fid,kid]",
            f"out={folder / 'two_sets'}",
        ],
        [f"run={folder / 'gan'}", "scores=[likelihood]"],
    ]
    network = ["model=dcgan", "network.width=4", "data.image_size=16"]  # with batch norm
    short = [
        "data.limit_train=64",
        "data.batch_size=32",
        "trainer.max_steps=4",
        "metrics.every_n_steps=4",
        "callbacks.grid=null",
        "logger=csv",
    ]
    trainings = [[["trainer=ddp", "trainer.accelerator=cpu", *network, *short], str(folder / "trained")]]
    result = on_two_processes("tests.runs.two_scorings", json.dumps(scorings), json.dumps(trainings))
    return folder, result


LIKELIHOOD = ["iwae_samples=20", "likelihood_images=80", "seed=5"]


@pytest.mark.long
def test_two_processes_score_as_one(two, runs):
    """Bit for bit, and only the first writes and prints; a mistake stops both."""
    folder, result = two
    options = {"seed": 5, "iwae_samples": 20, "likelihood_images": 80, "out": str(folder / "one")}
    gan = evaluate_run(runs / "gan", {**options, "scores": ["fid", "is", "kid", "pr", "nn"]})
    vae = evaluate_run(runs / "binary", {**options, "scores": ["likelihood", "reconstruction"]})
    paths = {"real": folder / "real.npz", "fake": folder / "fake.npz"}
    sets = evaluate_images({**paths, "scores": ["fid", "kid"], "out": str(folder / "one")})
    for record, place in ((gan, "two_gan"), (vae, "two_vae"), (sets, "two_sets")):
        theirs = json.loads((folder / place / Path(record["file"]).name).read_text())
        for name, value in theirs["scores"].items():
            assert value == record["scores"][name], name
            assert theirs["cards"][theirs["group"][name]] == record["cards"][record["group"][name]]
    assert result.stdout.count("nearest-neighbour ratio") == 1
    assert result.stderr.count("GAN on image data offers sample") == 2


def test_two_processes_judge_their_training_as_one(two):
    """Their own scores are those that one process finds for the checkpoint, to the last bit."""
    folder, _ = two
    model = genlab.load(folder / "trained")
    data = load_data(model.run_config)
    judge = instantiate(model.run_config["metrics"])
    own = json.loads((folder / "trained" / "run.json").read_text())
    assert judge.final(model, data) == own["scores"] and judge.found.cards == own["cards"]
    lines = [line.split(",") for line in (folder / "trained" / "metrics.csv").read_text().splitlines()]
    written = {metric: float(value) for _, _, metric, value in lines[1:] if metric.startswith("val/")}
    assert written == pytest.approx(judge.validate(model, data), rel=1e-5) and written


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Say what to score"),
        (["run={runs}/nothing"], "There is no run"),
        (["run={runs}/gan", "n=10"], "n must be a whole number from 20 on, got 10"),
        (["run={runs}/gan", "scores=[fd]"], "There is no score 'fd'"),
        (["run={runs}/gan", "scores=[likelihood]"], "GAN on image data offers sample"),
        (["run={runs}/gan", "split=dev"], "split must be train, val or test"),
        (["run={runs}/gan", "sede=3"], "Did you mean seed=?"),
        (["run={runs}/gan", "extractor=clasifier"], "one of classifier, inception, random, or a classifier file"),
        (["run={runs}/gan", "extractor=inception"], "inception_weights=PATH"),
        (["run={runs}/gan", "real=x"], "not both"),
        (["run={runs}/gan", "sampler=dsr"], "There is no sampler 'dsr'"),
        (["run={runs}/gan", "sampler=drs", "sampler.gama=1"], "Did you mean sampler.gamma"),
        (["run={runs}/gan", "sampler=gmm"], "sampler=gmm does not fit GAN: it has no encoder"),
        (["run={runs}/gan", "precision=bfloat16"], "all others work in float32"),
        (["real=x.npz", "fake=y.npz", "sampler=prior"], "the images of real= fake= exist already"),
        (["run={runs}/gan", "background=black"], "background=black is for real= fake=: a run's data are read as"),
        (
            ["real={runs}", "fake={runs}", "background=#1"],
            "background must be white, black or '#rrggbb', got '#1'. Try",
        ),
        (["real={runs}", "fake={runs}", "bits=9"], "bits must be 8, 10, 12, 14, 16 or null, got 9. Try bits=null"),
        (["--fetch-inception", "run={runs}/gan"], "--fetch-inception stands alone"),
        (["real=x.npz"], "both real=PATH and fake=PATH"),
    ],
)
def test_mistakes(arguments, words, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["evaluate.py", *(a.format(runs=runs) for a in arguments)])
    with pytest.raises(SystemExit) as stopped:
        evaluate.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and words in error and "metrics." not in error


def test_a_real_command_line(runs, tmp_path):
    result = command(
        [f"run={runs / 'gan'}", "scores=[ms_ssim]", f"out={tmp_path}"], tmp_path, script="scripts/evaluate.py"
    )
    assert result.returncode == 0, result.stderr
    assert "diversity, 1 - MS-SSIM" in result.stdout and "noised" in result.stdout
    assert len(list(tmp_path.glob("*.json"))) == 1


# -------------------------------------------------------------------------------------------------- images of any make
@pytest.fixture
def digits():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None], bunch.target


def write_folder(folder, images, size=None):
    folder.mkdir()
    for i, image in enumerate(images):
        picture = Image.fromarray(image[:, :, 0])
        (picture.resize(size) if size else picture).save(folder / f"{i:03d}.png")
    return folder


def test_a_folder_a_zip_and_an_npz_of_the_same_images_score_alike(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = digits
    np.savez("real.npz", x=x[:400], y=y[:400])
    np.savez("fake.npz", x=x[500:600])
    folder = write_folder(tmp_path / "fake", x[500:600])
    with zipfile.ZipFile("fake.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"inside/{path.name}")
    np.savez("train.npz", x=x[500:900])
    wanted = {"real": "real.npz", "scores": ["fid", "kid", "ms_ssim", "nn"], "train": "train.npz"}
    records = [evaluate_images({**wanted, "fake": fake}) for fake in ("fake.npz", "fake", "fake.zip")]
    assert records[0]["scores"] == records[1]["scores"] == records[2]["scores"]
    assert differences([r["cards"]["fid"] for r in records]) == []
    assert records[0]["cards"]["fid"]["extractor"] == "classifier-real"
    assert records[0]["scores"]["nn_ratio"] < 0.01  # all of them are training images
    same = evaluate_images({**wanted, "fake": "real.npz", "scores": ["fid", "nn"], "train": "real.npz"})
    assert abs(same["scores"]["fid/classifier-real"]) < 1e-3
    assert "the ratio measures nothing" in same["notes"][0]


def test_images_of_odd_sorts_are_read_as_a_data_set_reads_them(tmp_path, caplog):
    """16 bits by the largest value of the first set that has them, transparency on a background, a level too high."""
    for name, top in {"real": 4095, "fake": 1023}.items():
        for k in range(4):
            path = tmp_path / name / "outer" / "ab"[k % 2] / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4), top * k // 3, np.uint16)).save(path)
    sets, _ = load_image_sets({"real": tmp_path / "real", "fake": tmp_path / "fake"})
    assert [s.x[:, 0, 0, 0].sort().values.tolist() for s in sets.values()] == [[0, 85, 170, 255], [0, 21, 42, 63]]
    assert sets["real"].y.tolist() == [0, 0, 1, 1]
    for k in range(4):
        Image.new("LA", (4, 4), (k, 0)).save(tmp_path / "real" / "outer" / f"loose{k}.png")
        Image.new("LA", (4, 4), (k, 0)).save(tmp_path / "fake" / f"{k}.png")
    assert load_image_sets({"real": tmp_path / "real"})[0]["real"].y is None
    assert f"4 images of real={tmp_path / 'real'} lie beside its folders" in caplog.text
    shutil.rmtree(tmp_path / "fake" / "outer")
    for background, shape, value in (("white", (4, 1, 4, 4), 255), ("#010203", (4, 3, 4, 4), 1)):
        x = load_image_sets({"fake": tmp_path / "fake"}, background=background)[0]["fake"].x
        assert x.shape == shape and bool((x[:, 0] == value).all())
    assert f"All 4 samples of fake={tmp_path / 'fake'} are equal" in caplog.text


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": np.zeros((30, 8, 8, 1), np.uint8)}, "holds `images`, but no array `x`"),
        ({"x": np.zeros((30, 8, 8, 1), np.float32)}, "`x` as float32 of shape"),
        ({"x": np.zeros((30, 8, 8), np.uint8)}, "of shape [30, 8, 8]"),
        ({"x": np.zeros((30, 1, 8, 8), np.uint8)}, "of shape [30, 1, 8, 8]"),
        ({"x": np.array([{}] * 30, dtype=object)}, "cannot be read"),
        ({"x": np.zeros((30, 8, 8, 1), np.uint8), "y": np.zeros(3)}, "`y` as float64"),
    ],
)
def test_an_unknown_layout_is_told_what_is_expected(arrays, words, tmp_path):
    np.savez(tmp_path / "bad.npz", **arrays)
    np.savez(tmp_path / "real.npz", x=np.zeros((30, 8, 8, 1), np.uint8))
    with pytest.raises(UserError) as error:
        evaluate_images({"real": tmp_path / "real.npz", "fake": tmp_path / "bad.npz"})
    assert words in str(error.value) and "uint8 array `x` of shape [N, H, W, C]" in str(error.value)


def test_broken_few_and_unequal_images_are_named(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, _ = digits
    np.savez("real.npz", x=x[:50])
    broken = write_folder(tmp_path / "broken", x[:30])
    (broken / "007.png").write_bytes((broken / "007.png").read_bytes()[:40])
    options = {"real": "real.npz", "scores": ["ms_ssim"]}
    with pytest.raises(UserError, match=r"fake=broken: 1 of 30 images cannot be read: 007.png .*skip_broken=true"):
        evaluate_images({**options, "fake": "broken"})
    assert evaluate_images({**options, "fake": "broken", "skip_broken": True})["cards"]["ms_ssim"]["n_fake"] == 29
    write_folder(tmp_path / "few", x[:5])
    with pytest.raises(UserError, match="Scores need 20 images or more, and fake=few holds 5"):
        evaluate_images({**options, "fake": "few"})
    write_folder(tmp_path / "large", x[:30], (16, 12))
    with pytest.raises(UserError, match=r"real: 8x8; fake: 12x16.* set size=8"):
        evaluate_images({**options, "fake": "large"})
    record = evaluate_images({**options, "fake": "large", "size": 8})
    assert record["cards"]["ms_ssim"]["sizes"] == "centre crop, Lanczos to 8x8"
    for path in ("nothing", "real.txt"):
        (tmp_path / "real.txt").write_text("no images")
        with pytest.raises(UserError, match="expected is a folder or zip of images"):
            evaluate_images({**options, "fake": path})


# ---------------------------------------------------------------------------------------------------------- classifier
def test_train_classifier(tmp_path, monkeypatch, capsys, runs):
    monkeypatch.setattr("sys.argv", ["train_classifier.py", "data=digits", f"out={tmp_path / 'judge.pt'}"])
    train_classifier.main()
    assert "of the test images right; 10 classes, images 1x8x8" in capsys.readouterr().out
    record = evaluate_run(
        runs / "gan", {"extractor": str(tmp_path / "judge.pt"), "scores": ["fid"], "out": str(tmp_path)}
    )
    assert "fid/classifier-digits" in record["scores"]
    for arguments, words in ((["data=ring"], "ring holds points"), (["model=vae"], "is not understood")):
        with pytest.raises(UserError, match=words):
            train_classifier.train(arguments)
