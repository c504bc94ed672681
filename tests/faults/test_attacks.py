"""What comes from a stranger executes nothing, writes nowhere else and fills no memory; it is refused by name."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from genlab.cli import evaluate, export, sample, visualize
from genlab.errors import UserError
from genlab.extractors.cache import load_features
from genlab.extractors.classifier import load_classifier
from genlab.extractors.inception import read_inception_weights
from tests.cli.helpers import main as train_main
from tests.models import toys

COMMANDS = {"sample": sample, "evaluate": evaluate, "visualize": visualize, "export": export}
TARGETS = [
    "os.system",
    "builtins.exec",
    "builtins.eval",
    "subprocess.Popen",
    "torch.load",
    "torch.hub.load",
    "hydra.utils.call",
    "hydra.utils.instantiate",
    "hydra.utils.get_method",
    "pickle.loads",
    "importlib.import_module",
    "numpy.load",
    "pathlib.Path.write_text",
    "yaml.unsafe_load",
    "tests.models.toys.trap",
    "genlab.data.store.os.system",
    "genlab.data.folders.zipfile.ZipFile",
    "genlab.data.store.shutil.rmtree",
    "torch.nn.modules.module.torch.load",
    "torch.optim.optimizer.warnings.warn",
    "torchvision.transforms.functional.torch.hub.load_state_dict_from_url",
    "genlab.files.write_text",
    "genlab.cli.train.main",
]


class Payload:
    """Would run when it is unpickled."""

    def __reduce__(self):
        return toys.trap, ()


@pytest.fixture(autouse=True)
def _nothing_is_executed(monkeypatch):
    """A canary in the places that such a file would like to reach."""
    toys.BUILT.clear()
    monkeypatch.setattr(os, "system", lambda *_: toys.BUILT.append("system"))
    yield
    assert toys.BUILT == []


def call(command, monkeypatch, capsys, *arguments):
    """Exit code and what a command says."""
    monkeypatch.setattr("sys.argv", [f"{command}.py", *arguments])
    code = 0
    try:
        COMMANDS[command].main()
    except SystemExit as stopped:
        code = stopped.code
    said = capsys.readouterr()
    return code, said.out + said.err


def tamper(run, change):
    """Changes the config of a run, in its checkpoint and beside it."""
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint["genlab"]["config"])
    torch.save(checkpoint, path)
    config = yaml.safe_load((run / "config.yaml").read_text())
    change(config)
    (run / "config.yaml").write_text(yaml.safe_dump(config))


# A run folder


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", ["model", "a part of it"])
def test_a_strangers_run_names_what_it_may_not(command, place, run, monkeypatch, capsys):
    for target in TARGETS:

        def change(config, target=target):
            node = config["model"] if place == "model" else config["model"]["generator"]
            node.update({"_target_": target})

        tamper(run, change)
        code, said = call(command, monkeypatch, capsys, f"run={run}")
        assert code == 2 and target in said and "may not build" in said and "Traceback" not in said, (target, said)
        assert "allow_targets=[" in said and not list(run.glob("s*/*"))


def test_data_of_a_strangers_run(run, monkeypatch, capsys):
    """Judging reads the run's data: that part of its config is held against the list, too."""
    for target in TARGETS:
        tamper(run, lambda config, target=target: config["data"].update({"_target_": target}))
        code, said = call("evaluate", monkeypatch, capsys, f"run={run}")
        assert code == 2 and target in said and "Traceback" not in said, (target, said)


def test_what_the_user_allows_is_built(run, monkeypatch, capsys):
    """The same run, with the pattern typed; another pattern does not help."""
    tamper(run, lambda config: config["model"].update({"loss": {"_target_": "tests.models.toys.trap"}}))
    assert call("sample", monkeypatch, capsys, f"run={run}", "n=4")[0] == 2
    assert call("sample", monkeypatch, capsys, f"run={run}", "n=4", "allow_targets=[tests.data.*]")[0] == 2
    code, said = call("sample", monkeypatch, capsys, f"run={run}", "n=4", "allow_targets=[tests.models.*]")
    assert code == 0, said
    assert set(toys.BUILT) == {"trap"}
    toys.BUILT.clear()


def test_the_list_of_a_strangers_run_is_not_asked(run, monkeypatch, capsys):
    """`allow_targets` in the run's own config allows nothing."""

    def change(config):
        config["allow_targets"] = ["*"]
        config["model"]["loss"] = {"_target_": "tests.models.toys.trap"}

    tamper(run, change)
    assert call("sample", monkeypatch, capsys, f"run={run}")[0] == 2


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "${oc.create:{_target_:os.system}}", "a ${seed}"])
def test_interpolations_are_refused(text, run, monkeypatch, capsys):
    tamper(run, lambda config: config["model"].update({"latent_dim": text}))
    code, said = call("sample", monkeypatch, capsys, f"run={run}")
    assert code == 2 and "interpolation" in said and os.environ.get("HOME", "?") not in said.replace(str(run), "")


def test_values_that_fit_nothing_are_a_sentence(run, monkeypatch, capsys):
    for value in (-5, "many", [1], None, {"a": 1}):
        tamper(run, lambda config, value=value: config["model"]["generator"].update({"hidden": value}))
        code, said = call("sample", monkeypatch, capsys, f"run={run}")
        assert code == 2 and "Traceback" not in said and len(said) < 1500, (value, said)


# Pickles


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["torch", "old torch", "pickle"])
def test_a_checkpoint_with_code_in_it(command, kind, run, monkeypatch, capsys):
    path = run / "checkpoints" / "last.ckpt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Payload()))
    else:
        torch.save({"genlab": Payload()}, path, _use_new_zipfile_serialization=kind == "torch")
    code, said = call(command, monkeypatch, capsys, f"run={run}")
    assert code == 2 and "last.ckpt cannot be read" in said and "Traceback" not in said
    assert train_main(monkeypatch, f"resume={run}", "trainer.max_steps=10") == 2


def test_a_checkpoint_that_unpacks_to_more_than_it_is(run, monkeypatch, capsys):
    """torch stores its records as they are; a packed one is a bomb or somebody's mistake."""
    path = run / "checkpoints" / "last.ckpt"
    packed = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    path.write_bytes(packed.getvalue())
    code, said = call("sample", monkeypatch, capsys, f"run={run}")
    assert code == 2 and "compressed records" in said


@pytest.mark.parametrize("name", ["x.npz", "x.npy"])
def test_arrays_of_objects_are_not_unpickled(name, tmp_path, monkeypatch, capsys):
    objects = np.array([Payload()], dtype=object)
    path = tmp_path / name
    np.savez(path, x=objects) if name.endswith("npz") else np.save(path, objects, allow_pickle=True)
    code, said = call("evaluate", monkeypatch, capsys, f"real={path}", f"fake={path}")
    assert code == 2 and str(path) in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("read", "error"),
    [(load_classifier, ValueError), (load_features, ValueError), (read_inception_weights, UserError)],
)
@pytest.mark.parametrize("inside", [Payload(), {"format": Payload()}, {"state": [Payload()]}])
def test_weights_and_features_are_not_unpickled(read, error, inside, tmp_path):
    torch.save(inside, tmp_path / "file.pt")
    with pytest.raises(error, match="file.pt"):
        read(tmp_path / "file.pt")


# Archives


def png(size=(16, 16)):
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG")
    return file.getvalue()


def test_names_in_a_zip_lead_nowhere(tmp_path, monkeypatch):
    """Nothing is unpacked under them; the images are read as any others."""
    from genlab.data.folders import ImageZip

    outer = tmp_path / "outer"
    (outer / "inner").mkdir(parents=True)
    with zipfile.ZipFile(outer / "inner" / "set.zip", "w") as archive:
        for k in range(20):
            archive.writestr(f"../../escaped{k}.png", png())
            archive.writestr(f"{tmp_path}/absolute{k}.png", png())
            archive.writestr(f"..\\windows{k}.png", png())
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    data = ImageZip(root=outer / "inner" / "set.zip", image_size=16, channels=3, batch_size=4)
    data.prepare_data()
    data.setup()
    cache = tmp_path / "cache"
    assert sorted(p for p in tmp_path.rglob("*") if p != cache and cache not in p.parents) == before


def test_a_member_that_unpacks_to_too_much(tmp_path, monkeypatch):
    from genlab.data import decode
    from genlab.data.folders import ImageZip

    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(decode, "_MEMBER_LIMIT", 2**20)
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("fine.png", png())
        archive.writestr("bomb.png", png() + bytes(2**21))
    assert (tmp_path / "set.zip").stat().st_size < 2**14
    with pytest.raises(UserError, match=r"bomb\.png.*unpacks to"):
        ImageZip(root=tmp_path / "set.zip", image_size=16, channels=3, batch_size=4).prepare_data()


def test_an_array_that_unpacks_to_too_much(tmp_path, monkeypatch, capsys):
    from genlab.data import store

    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((4096, 16, 16, 3), np.uint8))
    monkeypatch.setattr(store, "free_memory", lambda: 2**20)
    arguments = [f"real={tmp_path / 'x.npz'}", f"fake={tmp_path / 'x.npz'}"]
    code, said = call("evaluate", monkeypatch, capsys, *arguments)
    assert code == 2 and "more than the free memory" in said
