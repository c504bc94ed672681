"""What all data modules share: arguments, splits, binarisation, Lightning, configs; and the toy distributions."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml

from genlab.batch import Batch
from genlab.config import conditioning
from genlab.config.composition import compose
from genlab.config.instantiate import check_signatures, instantiate
from genlab.data.columns import Ragged
from genlab.data.images import Digits
from genlab.data.module import ArrayData
from genlab.data.store import ArrayStore
from genlab.data.stream import Stream
from genlab.data.toy import Grid, HighDim, Ring, SwissRoll
from genlab.errors import UserError
from genlab.metrics.toy import mode_coverage

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "data"


def digits(**arguments) -> Digits:
    return Digits(**{"batch_size": 16, "image_size": 8, "channels": 1, **arguments})


class Counting(ArrayData):
    """Ten grey images: number k is filled with 25 k."""

    name = "counting"

    def _load(self, download: bool) -> dict[str, ArrayStore]:
        self.loads = getattr(self, "loads", 0) + 1
        return {"all": ArrayStore({"x": (25 * torch.arange(10)).to(torch.uint8).view(10, 1, 1, 1).expand(10, 1, 4, 4)})}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "data.batch_size must be a positive"),
        ({"batch_size": 2.5}, "data.batch_size must be a positive"),
        ({"binarize": "yes"}, "none, static, dynamic, got 'yes'"),
        ({"image_size": 0}, "data.image_size must be"),
        ({"image_size": "big"}, "data.image_size must be"),
        ({"image_size": [8, 8, 8]}, "data.image_size must be"),
        ({"image_size": None}, "needs data.image_size"),
        ({"channels": 4}, "data.channels must be 1"),
        ({"shape": [1, 8, 9]}, "contradicts"),
        ({"shape": [3, 8, 8]}, "contradicts"),
        ({"kind": "points"}, "got data.kind='points'"),
        ({"num_classes": 3}, "digits has 10 classes, got data.num_classes=3"),
        ({"limit_train": 0}, "data.limit_train"),
        ({"num_workers": 0}, "data.num_workers"),
    ],
)
def test_bad_arguments_are_refused_at_construction(arguments, message):
    with pytest.raises(UserError, match=message):
        digits(**arguments)


def test_points_have_no_flips_no_grey_values_and_two_numbers():
    with pytest.raises(UserError, match="are for images"):
        Ring(batch_size=4, flip=True)
    with pytest.raises(UserError, match="are for images"):
        Ring(batch_size=4, binarize="static")
    with pytest.raises(UserError, match=r"shape \[2\], got data.shape=\[3\]"):
        Ring(batch_size=4, shape=[3])
    with pytest.raises(UserError, match="ring has 8 classes"):
        Ring(batch_size=4, num_classes=9)


def test_the_spec_is_there_before_any_file_is_read():
    data = Counting(batch_size=2, image_size=4, channels=1)
    assert data.spec.shape == (1, 4, 4)
    assert not hasattr(data, "loads")
    data.prepare_data()
    data.setup("fit")
    data.setup()
    assert data.loads == 1
    with pytest.raises(UserError, match="train, val, test"):
        data.split("valid")


def test_the_split_is_a_fixed_random_choice():
    """Pinned: another choice would make figures of two versions of genlab incomparable."""
    data = Counting(batch_size=2, image_size=4, channels=1, seed=3)
    numbers = {name: (data.split(name).values("x")[:, 0, 0, 0] // 25).tolist() for name in ("train", "val", "test")}
    assert numbers == {"train": [0, 3, 4, 5, 6, 7, 8, 9], "val": [2], "test": [1]}


def test_downloads_are_asked_for_in_one_process_only():
    asked = []

    class Source(Counting):
        def _load(self, download: bool) -> dict[str, ArrayStore]:
            asked.append(download)
            return super()._load(download)

    arguments = {"batch_size": 2, "image_size": 4, "channels": 1, "download": True}
    Source(**arguments).prepare_data()
    Source(**arguments).setup("fit")
    Source(**arguments).split("test")  # a script without a trainer
    assert asked == [True, False, True]


def test_a_source_of_another_shape_is_refused():
    with pytest.raises(UserError, match=r"shape \[1, 4, 4\], got \[1, 5, 5\]"):
        Counting(batch_size=2, image_size=5, channels=1).setup()


def test_limit_train_keeps_a_fixed_choice_and_leaves_the_other_splits():
    whole, part = digits(), digits(limit_train=100, seed=9)
    assert [len(part.split(name)) for name in ("train", "val", "test")] == [100, 180, 359]
    assert part.split("test").fingerprint() == whole.split("test").fingerprint()
    assert set(part.split("train").y.tolist()) == set(range(10))
    assert part.split("train").fingerprint() == digits(limit_train=100).split("train").fingerprint()


@pytest.mark.parametrize("binarize", ["static", "dynamic"])
def test_binarised_digits(binarize):
    data, grey = digits(binarize=binarize), digits()
    stream = data.train_dataloader()
    assert set(stream.batch(0).x.unique().tolist()) == {-1.0, 1.0}
    for name in ("val", "test"):
        assert set(data.split(name).values("x").unique().tolist()) == {0, 255}
        assert data.split(name).fingerprint() == digits(binarize="static", seed=4).split(name).fingerprint()
        means = data.split(name).values("x").double().mean(), grey.split(name).values("x").double().mean()
        torch.testing.assert_close(*means, rtol=0.02, atol=0)  # the mean grey is kept
    fixed = set(data.split("train").values("x").unique().tolist()) == {0, 255}
    assert fixed == (binarize == "static")


def test_first_batches_are_the_streams_and_cost_the_stream_nothing():
    data = digits(seed=2)
    stream = data.stream()
    for i, batch in enumerate(data.first_batches(3)):
        torch.testing.assert_close(batch.x, stream.batch(i).x, rtol=0, atol=0)
    assert len(list(data.first_batches(3))) == 3


def test_batches_for_metrics_are_whole_and_in_order():
    data = digits()
    batches = data.batches("test", 100)
    assert [len(b) for b in batches] == [100, 100, 100, 59]
    assert len(batches) == 4
    torch.testing.assert_close(torch.cat([b.y for b in batches]), data.split("test").y)
    assert sum(len(b) for b in data.batches("test", 100, limit=150)) == 150


def test_batches_per_step_gives_that_many_chunks():
    data = digits()
    data.batches_per_step = 5
    assert len(data.train_dataloader().batch(0)) == 80


def test_describe_holds_plain_containers_only():
    card = {**digits().describe(), "ring": Ring(batch_size=4).describe()}
    assert yaml.safe_load(yaml.safe_dump(card)) == card
    assert card["ring"]["modes"] == 8


class Recorder(pl.LightningModule):
    """Learns nothing; writes down which samples it saw."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch["index"].tolist())
        return self.weight * batch.x.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(steps: int, ckpt_path: Path | None = None) -> tuple[pl.Trainer, list]:
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    model = Recorder()
    trainer.fit(model, datamodule=Counting(batch_size=4, image_size=4, channels=1, seed=1), ckpt_path=ckpt_path)
    return trainer, model.seen


@pytest.mark.filterwarnings("ignore")
def test_lightning_takes_the_stream_and_resumes_at_the_next_batch(tmp_path):
    """Eight samples and batches of four: seven iterations end in the middle of the fourth epoch."""
    _, whole = fit(12)
    trainer, head = fit(7)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    _, tail = fit(12, tmp_path / "a.ckpt")
    assert len(whole) == 12
    assert head == whole[:7]
    assert tail == whole[7:]


# --- Toy distributions ------------------------------------------------------------------------------------------------


def points(data, split: str = "train") -> torch.Tensor:
    return data.split(split).values("x").double()


@pytest.mark.parametrize(("make", "modes"), [(Ring, 8), (Grid, 25)])
def test_mixtures_have_their_centres_and_spread(make, modes):
    data = make(batch_size=4, shape=[2], num_classes=modes)
    centres, std, radius, _ = data.modes
    assert radius == 3.0
    x, y = points(data), data.split("train").y
    assert x.shape == (100_000, 2)
    assert len(points(data, "val")) == len(points(data, "test")) == 10_000
    assert centres.shape == (modes, 2)
    counts = y.bincount(minlength=modes).double()
    assert (counts / counts.sum() * modes - 1).abs().max() < 0.08  # each mode has its share: standard error 0.016
    for k in range(modes):
        noise = x[y == k] - centres[k].double()
        # Standard errors are std / sqrt(4000) for the mean, std / sqrt(8000) for the deviation.
        assert noise.mean(dim=0).abs().max() < 5 * std / 4000**0.5
        torch.testing.assert_close(noise.std(dim=0), torch.full((2,), std).double(), rtol=0.06, atol=0)


def test_centres_stand_where_the_papers_have_them():
    ring = Ring(batch_size=4).centres
    torch.testing.assert_close(ring.norm(dim=1), torch.full((8,), 2.0))
    torch.testing.assert_close(ring[0], torch.tensor([2.0, 0.0]))
    assert torch.pdist(ring).min() > 1.5  # 4 sin(pi / 8) = 1.53: eight different ones
    grid = Grid(batch_size=4).centres
    assert {tuple(c) for c in grid.tolist()} == {(float(a), float(b)) for a in range(-4, 5, 2) for b in range(-4, 5, 2)}
    assert Ring.std == 0.02
    assert Grid.std == 0.05


def test_gaussians_in_many_dimensions():
    """Their noise, that it is in 700 coordinates, and that true samples pass as such and others do not."""
    data = HighDim(batch_size=4)
    centres, std, radius, dim = data.modes
    assert std == 1.0 and dim == 700 and radius**2 == pytest.approx(700 + 3 * 1400**0.5)
    x, y = points(data), data.split("train").y
    assert x.shape == (20_000, 1200) and centres.shape == (10, 1200)
    noise = x - centres.double()[y]
    assert noise[:, 700:].abs().max() == 0
    assert noise[:, :700].mean().abs() < 5 / (20_000 * 700) ** 0.5
    assert noise[:, :700].std() == pytest.approx(1, abs=5 / (2 * 20_000 * 700) ** 0.5)
    assert sorted(centres[:, 0].tolist()) == [-13.0, -5.5, -2.5, -2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 10.0]

    perfect = mode_coverage(points(data, "test"), *data.modes)
    assert perfect["modes"] == 10 and perfect.card["hq_ceiling"] == pytest.approx(0.9975, abs=5e-4)
    assert perfect["hq"] == pytest.approx(perfect.card["hq_ceiling"], abs=5 * 0.05 / 2500**0.5)
    spread = points(data, "test") + torch.randn(2500, 1200, generator=torch.Generator().manual_seed(0))
    assert mode_coverage(spread, *data.modes)["hq"] == 0  # noise in the other 500 and twice as much in these
    assert (
        mode_coverage(points(data, "test")[data.split("test").y == 7], *data.modes)["modes"] == 1
    )  # 8.7 from 0 and 0.5


def test_the_swiss_roll_lies_on_its_spiral():
    data = SwissRoll(batch_size=4)
    assert data.modes is None
    assert data.split("train").y is None
    x = points(data)
    # E|x|^2 = E t^2 / 7.5^2 + 2 std^2 with t uniform in [1.5 pi, 4.5 pi], of which E t^2 = 9.75 pi^2.
    expected = 9.75 * torch.pi**2 / 7.5**2 + 2 * SwissRoll.std**2
    torch.testing.assert_close(x.square().sum(1).mean().item(), expected, rtol=0.01, atol=0)
    radius, angle = x.norm(dim=1) * 7.5, torch.atan2(x[:, 1], x[:, 0])
    off = torch.remainder(radius - angle + torch.pi, 2 * torch.pi) - torch.pi  # radius = angle + 2 pi k on the spiral
    torch.testing.assert_close(off.square().mean().sqrt().item(), 0.25, rtol=0.06, atol=0)


def test_toy_points_do_not_depend_on_the_seed_but_their_order_does():
    a, b = Ring(batch_size=8, seed=0), Ring(batch_size=8, seed=1)
    assert a.describe() == b.describe()
    assert not torch.equal(a.stream().batch(0).x, b.stream().batch(0).x)
    assert not torch.equal(points(a, "val"), points(a, "test"))


# --- Configs ----------------------------------------------------------------------------------------------------------


NEEDS = {"unpaired": ["data@data.domains.a=digits", "data@data.domains.b=digits"]}
OWN_FAMILY = {"digits": ("mlp_image", "images"), "stacked_digits": ("mlp_image", "stacked")}  # tiny and few
FAMILIES = {"image": ("dcgan", "images"), "points": ("mlp", "points")}  # of all other kinds: ("mlp", "more")


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_each_config_fits_its_class(name):
    config = compose([f"data={name}", *NEEDS.get(name, [])])
    network, metrics = OWN_FAMILY.get(name) or FAMILIES.get(config["data"]["kind"], ("mlp", "more"))
    assert (config["choices"]["network"], config["choices"]["metrics"]) == (network, metrics)
    check_signatures(config["data"], "data")
    data = instantiate(config["data"])  # the facts in the yaml agree with those in the class
    assert data.spec.x.kind == config["data"]["kind"]
    assert data.spec.num_classes == config["data"].get("num_classes")
    assert data.batch_size == config["data"]["batch_size"]
    described = conditioning.described(config)
    assert {name: field.kind for name, field in described.fields.items()}.items() <= {
        name: field.kind for name, field in data.spec.fields.items()
    }.items()  # what conditioning reads is what the data have


def test_there_is_a_config_for_every_source():
    names = {path.stem for path in CONFIGS.glob("*.yaml")}
    assert names >= {
        "digits", "mnist", "fashion_mnist", "mnist10k", "cifar10", "celeba", "folder", "zip", "ring", "grid",
        "swiss_roll", "omniglot_small",
    }  # fmt: skip


def test_a_trainer_less_module_streams_from_the_start():
    stream = digits().train_dataloader()
    assert isinstance(stream, Stream)
    assert stream.start == 0
    assert stream.world_size == 1


# --- Few labels -------------------------------------------------------------------------------------------------------


def test_few_labels_are_equally_many_of_each_class_and_judges_see_all():
    data = digits(num_labelled=50, label_seed=3)
    batches = [data.stream().batch(i) for i in range(200)]  # two epochs and a half
    index, y = (torch.cat([b[name] for b in batches]) for name in ("index", "y"))
    kept = index[y >= 0].unique()
    truth = data.split("train").y
    assert len(kept) == 50 and torch.equal(y[y >= 0], truth[index[y >= 0]])
    assert torch.bincount(truth[kept], minlength=10).tolist() == 10 * [5]
    assert (truth >= 0).all() and (next(iter(data.batches("train"))).y >= 0).all()
    assert torch.equal(next(data.first_batches(1)).y, batches[0].y)
    assert data.describe() == digits().describe()  # scores go by what the data are, not by what training sees of them


def test_few_labels_are_a_choice_of_their_own_seed():
    """Neither the order of the batches nor a resumed or a second process changes which they are."""

    def labels(**arguments):
        return digits(num_labelled=25, **arguments).training_store().y

    assert torch.equal(labels(seed=0), labels(seed=1))
    assert not torch.equal(labels(), labels(label_seed=1))
    counts = torch.bincount(labels()[labels() >= 0], minlength=10)
    assert counts.sum() == 25 and set(counts.tolist()) == {2, 3}
    data = digits(num_labelled=25, seed=4)
    whole, later = data.stream().batch(7), data.stream(start=7)
    assert torch.equal(whole.y, next(iter(later)).y)
    halves = [data.stream(rank=rank, world_size=2).batch(7) for rank in (0, 1)]
    assert torch.equal(whole.y, torch.cat([half.y for half in halves]))


def test_few_labels_fill_up_from_other_classes_where_one_runs_out():
    class Uneven(Counting):
        def _load(self, download: bool) -> dict[str, ArrayStore]:
            store = super()._load(download)["all"]
            y = torch.tensor([0, 1, 1, 1, 1, 1, 1, -1, 1, 1])
            return {split: store.with_column("y", y) for split in ("train", "val", "test")}

    def data(n):
        return Uneven(batch_size=2, image_size=4, channels=1, num_labelled=n)

    y = data(4).training_store().y
    assert [int((y == c).sum()) for c in (-1, 0, 1)] == [6, 1, 3]
    assert torch.equal(data(9).training_store().y, data(9).split("train").y)
    with pytest.raises(UserError, match="more labels than the 9 that counting has"):
        data(10).stream()


@pytest.mark.parametrize("arguments", [{"num_labelled": 0}, {"num_labelled": 10, "labels": False}])
def test_few_labels_are_refused(arguments):
    with pytest.raises(UserError, match="data.num_labelled must be a positive number"):
        digits(**arguments)


class Captioned(ArrayData):
    """Points with a sentence each."""

    name, kind, own_shape = "captioned", "points", (2,)

    def _load(self, download):
        sentences = [torch.arange(1 + i % 3, dtype=torch.int32) for i in range(40)]
        return {"all": ArrayStore({"x": torch.zeros(40, 2), "caption": Ragged.of(sentences)})}


def test_columns_of_the_config_are_in_batches_and_in_the_facts():
    """As the document's example states them; sentences are padded and read as numbers of words."""
    facts = {"kind": "tokens", "shape": [None], "names": ["a", "small", "circle"], "most": 8}
    data = Captioned(batch_size=8, columns={"caption": facts})
    data.setup()
    assert data.spec.fields["caption"].to_dict() == facts and "caption" in data.column_names
    (batch,) = data.first_batches(1)
    caption = batch["caption"]
    assert caption.values.dtype == torch.int64 and caption.values.shape == (8, int(caption.length.max()))
    rows = data.given_rows("test", ["caption"], 5, torch.Generator().manual_seed(0))
    assert set(data.spec.fields["caption"].text(rows["caption"])) <= {"a", "a small", "a small circle"}
    with pytest.raises(ValueError, match="Points must be float32"):
        Captioned(batch_size=8, columns={"caption": {"kind": "points", "shape": [1]}}).setup()
