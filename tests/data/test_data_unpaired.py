"""Two data sets without pairs as the columns of one."""

import pytest
import torch

from genlab.config.composition import compose
from genlab.config.instantiate import build_data
from genlab.data.derive import Grey
from genlab.data.images import Digits
from genlab.data.shapes import Shapes
from genlab.data.unpaired import Unpaired
from genlab.errors import UserError

DIGITS = {"image_size": 8, "channels": 1, "batch_size": 1}


def pair(gives=None, batch_size=16, **more):
    domains = {"a": Shapes(image_size=8, num_train=100, batch_size=1), "b": Digits(**DIGITS, **more)}
    return Unpaired(domains=domains, batch_size=batch_size, gives=gives, seed=3)


def test_each_domain_has_an_order_of_its_own_and_the_target_plain_names():
    data = pair()
    batch = data.stream().batch(0)
    assert {"a", "a.y", "a.factor", "b", "b.y", "x", "y", "index"} <= set(batch.columns)
    assert "factor" not in batch  # of the other domain
    assert torch.equal(batch.x, batch["b"]) and torch.equal(batch.y, batch["b.y"]) and len(batch) == 16
    assert batch["a"].shape == (16, 1, 8, 8)
    firsts = [data.stream().batch(i)["a.index"][0].item() for i in range(6)]
    assert firsts != [data.stream().batch(i)["b.index"][0].item() for i in range(6)]
    seen = torch.cat([data.stream().batch(i)["a.index"] for i in range(7)])[:100]
    assert len(seen.unique()) == 100  # an epoch of the smaller domain


def test_batches_are_pure_and_shared_by_processes():
    whole, halves = pair().stream(), [pair().stream(rank=rank, world_size=2) for rank in (0, 1)]
    for i in (0, 5):
        one, parts = whole.batch(i), [half.batch(i) for half in halves]
        for name in one.columns:
            assert torch.equal(one[name], torch.cat([part[name] for part in parts])), name
    resumed = next(iter(pair().stream(start=5)))
    assert torch.equal(resumed["a"], whole.batch(5)["a"]) and torch.equal(resumed.x, whole.batch(5).x)


def test_the_target_can_be_chosen():
    data = pair(gives="a")
    batch = data.stream().batch(0)
    assert torch.equal(batch.x, batch["a"]) and data.spec.class_names == ("ellipse", "rectangle", "triangle")
    assert data.spec.factor_names is not None and len(data.split("train")) == 100


def test_rows_of_a_split_stand_beside_rows_of_the_other_domain():
    data = pair()
    store = data.split("test")
    shapes = data.domains["a"].split("test")
    assert len(store) == 359 and torch.equal(store.values("x"), data.domains["b"].split("test").values("x"))
    assert torch.equal(store.values("a"), shapes.values("x")[:359])
    assert torch.equal(data.split("train").values("a.y"), data.domains["a"].split("train").y[torch.arange(1258) % 100])
    rows = data.rows("test", ["a", "b.y"], torch.tensor([4, 2]))
    assert torch.equal(rows["b.y"], data.domains["b"].split("test").y[[4, 2]]) and rows["a"].dtype == torch.float32
    batch = next(iter(data.batches("val", 10)))
    assert batch["a"].shape == (10, 1, 8, 8)


def test_settings_of_a_domain_are_kept():
    data = pair(binarize="dynamic", num_labelled=20)
    batch = data.stream().batch(0)
    assert set(batch["b"].unique().tolist()) == {-1.0, 1.0} and len(batch["a"].unique()) > 2
    assert (data.training_store().y >= 0).sum() == 20
    assert set(data.judged("train").values("x").unique().tolist()) == {0, 255}


def test_columns_are_derived_of_either_domain():
    data = Unpaired(domains={"a": Digits(**{**DIGITS, "channels": 3}), "b": Digits(**DIGITS)}, batch_size=4)
    data.derive_columns({"grey": Grey(of="a")})
    batch = data.stream().batch(0)
    assert batch["grey"].shape == (4, 1, 8, 8) and data.spec.fields["grey"].fixed_shape == (1, 8, 8)
    torch.testing.assert_close(batch["grey"][:, 0], batch["a"].mean(dim=1))


def test_mistakes_are_one_sentence():
    with pytest.raises(UserError, match="needs two domains, got a"):
        Unpaired(domains={"a": Digits(**DIGITS)}, batch_size=4)
    with pytest.raises(UserError, match="data.gives must be one of the domains a, b, got 'c'"):
        pair(gives="c")
    with pytest.raises(UserError, match="data.batch_size=15 is the batch over all processes"):
        pair(batch_size=15).stream(world_size=2)
    with pytest.raises(UserError, match="made of others: choose each, as in data@data.domains.a=digits"):
        compose(["data=unpaired", "data@data.domains.a=digits"])


def test_domains_are_chosen_as_data_sets_are():
    chosen = [
        "data=unpaired",
        "data@data.domains.a=shapes",
        "data@data.domains.b=digits",
        "data.domains.a.image_size=8",
    ]
    config = compose([*chosen, "model=cgan", "model.given=[a]", "network=mlp"])
    assert config["choices"]["data"] == "unpaired" and config["data"]["num_classes"] == 10
    data = build_data(config)
    assert data.stream().batch(0)["a"].shape == (64, 1, 8, 8)
    assert data.name == "unpaired-shapes-digits"
    folders = compose(["data=unpaired_folders", "data.root=/nowhere"])["data"]["domains"]
    assert [(d["domain"], d["root"]) for d in folders.values()] == [("A", "/nowhere"), ("B", "/nowhere")]


def test_folders_of_two_domains(tmp_path):
    import numpy as np
    from PIL import Image

    for k, (folder, n) in enumerate({"trainA": 12, "trainB": 14, "testA": 3, "testB": 4, "other": 5}.items()):
        (tmp_path / folder).mkdir()
        for i in range(n):
            Image.fromarray(np.full((4, 4, 3), 50 * k, np.uint8)).save(tmp_path / folder / f"{i}.png")
    config = compose(
        ["data=unpaired_folders", f"data.root={tmp_path}", "data.domains.a.image_size=4", "data.domains.b.image_size=4"]
    )
    data = build_data(config)
    assert data.describe()["sizes"] == {"train": 13, "val": 1, "test": 4}  # a tenth of training is for validation
    store = data.split("test")
    assert store.values("a").unique().tolist() == [100] and store.values("b").unique().tolist() == [150]
    assert data.domains["a"].describe()["sizes"] == {"train": 11, "val": 1, "test": 3}
    (tmp_path / "trainB").rename(tmp_path / "else")
    with pytest.raises(UserError, match="no images in .*/trainB"):
        build_data(config).setup()


def test_horses_and_zebras(unpacked):
    root = unpacked("horse2zebra-128") / "horse2zebra"
    config = compose(
        ["data=unpaired_folders", f"data.root={root}", "data.domains.a.image_size=16", "data.domains.b.image_size=16"]
    )
    data = build_data(config)
    sizes = [domain.describe()["sizes"] for domain in data.domains.values()]
    assert [sum(s.values()) - s["test"] for s in sizes] == [1067, 1334] and [s["test"] for s in sizes] == [120, 140]
