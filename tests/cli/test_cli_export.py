"""Exports: the files draw what the model draws, and nothing else is written."""

import json
import subprocess
import sys

import pytest
import torch

import genlab
from genlab.cli import export as module
from genlab.cli.export import CHECKED, FILES, TOLERANCE, export, keep_averages, load_export, trace
from genlab.config.composition import compose
from genlab.errors import UserError
from genlab.runs.start import train

QUICK = ["metrics=none", "callbacks=none", "logger=none", "trainer=cpu", "threads=1", "ema.decay=0.9"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A convolutional GAN, so that batch norm and transposed convolutions are part of it."""
    folder = tmp_path_factory.mktemp("run")
    small = ["network.width=4", "data.batch_size=16", "model.latent_dim=6"]
    train(compose(["model=dcgan", *small, *QUICK, "trainer.max_steps=5"]), folder)
    return folder


@pytest.fixture(scope="module")
def exported(run):
    """All three formats."""
    for package in ("safetensors", "onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason='pip install -e ".[export]"')
    return export({"run": run})


def test_all_formats_draw_what_the_model_draws(run, exported):
    """Read back here by the public functions of each format, from latents and numbers that were never traced."""
    import onnxruntime

    folder, spec = exported
    assert folder == run / "export" and set(spec["files"]) == set(FILES.values()) and not spec["left_out"]
    model = genlab.load(run)
    z = torch.randn(max(CHECKED) + 5, 6, generator=torch.Generator().manual_seed(99))
    wanted = model.decode(z)
    program = torch.export.load(folder / FILES["pt2"])
    torch.testing.assert_close(program.module()(z), wanted, rtol=0, atol=TOLERANCE)
    session = onnxruntime.InferenceSession(folder / FILES["onnx"], providers=["CPUExecutionProvider"])
    (drawn,) = session.run(None, {"z": z.numpy()})
    torch.testing.assert_close(torch.from_numpy(drawn), wanted, rtol=0, atol=TOLERANCE)
    assert torch.equal(load_export(folder).decode(z), wanted)


def test_the_weights_are_the_averages(run, exported):
    from safetensors.torch import load_file

    weights = load_file(exported[0] / FILES["safetensors"])
    model = genlab.load(run)
    live = {name: value.clone() for name, value in model.state_dict().items()}
    assert weights.keys() == live.keys()
    with model.ema():
        assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert any(not torch.equal(weights[name], live[name]) for name in weights)


def test_the_description_says_what_one_needs(exported):
    folder, spec = exported
    assert json.loads((folder / "spec.json").read_text()) == json.loads(json.dumps(spec))
    assert spec["data"]["shape"] == [1, 8, 8] and spec["data"]["value_range"] == [-1.0, 1.0]
    assert spec["latents"] == {"size": 6, "prior": "standard normal"}
    assert spec["averaged"] is True and spec["iteration"] == 5
    for facts in spec["files"].values():
        assert facts["largest_difference"] <= TOLERANCE


def test_a_sampler_carries_the_generator_alone(run, exported):
    names = torch.export.load(exported[0] / FILES["pt2"]).state_dict
    assert names and all(name.startswith("model.generator.") for name in names)


@pytest.mark.slow
def test_the_sampler_needs_no_genlab(exported, tmp_path):
    code = (
        "import sys, torch; sys.modules['genlab'] = None; "
        f"x = torch.export.load({str(exported[0] / FILES['pt2'])!r}).module()(torch.zeros(2, 6)); "
        "assert x.shape == (2, 1, 8, 8)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=120)


@pytest.mark.parametrize("overrides", [["model=vae"], ["model=vae", "data=swiss_roll", "likelihood=gaussian"]])
def test_other_models_are_traced_for_any_number_of_latents(overrides, tmp_path):
    train(compose([*overrides, *QUICK, "trainer.max_steps=2"]), tmp_path)
    model = genlab.load(tmp_path)
    assert keep_averages(model)
    z = model.noise(4, torch.Generator())
    program = trace(model, z)
    for n in (1, 2, 9):
        z = model.noise(n, torch.Generator().manual_seed(n))
        torch.testing.assert_close(program.module()(z), model.decode(z))
    assert not any("encoder" in name for name in program.state_dict)


def test_a_sampler_that_draws_something_else_is_not_written(run, tmp_path, monkeypatch):
    content = b"not the generator"
    monkeypatch.setattr(module, "_pt2", lambda model, z: (content, lambda z: model.decode(z) + 2 * TOLERANCE))
    with pytest.raises(UserError, match="pt2 sampler draws other samples") as caught:
        export({"run": run, "formats": "pt2", "out": tmp_path})
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_nan_is_no_agreement(run, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_pt2", lambda model, z: (b"", lambda z: model.decode(z) * float("nan")))
    with pytest.raises(UserError, match="draws other samples"):
        export({"run": run, "formats": "pt2", "out": tmp_path})


def test_a_missing_package_is_named(run, tmp_path, monkeypatch):
    """Asked for by name it is an error; among all formats it is left out, and an old file does not stay behind."""
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'sampler.onnx needs onnx and .* pip install -e ".*\[export\]"'):
        export({"run": run, "formats": "onnx", "out": tmp_path})
    (tmp_path / FILES["onnx"]).write_text("of an earlier export")
    folder, spec = export({"run": run, "out": tmp_path})
    assert list(spec["files"]) == [FILES["pt2"]] and set(spec["left_out"]) == {"safetensors", "onnx"}
    assert {p.name for p in folder.iterdir()} == {FILES["pt2"], "spec.json"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Say what to export"),
        ({"run": "RUN", "formats": "tflite"}, "formats takes safetensors, pt2, onnx, got 'tflite'"),
        ({"run": "nowhere"}, "no run at nowhere"),
    ],
)
def test_mistakes_are_one_sentence(options, message, run):
    if options.get("run") == "RUN":
        options = {**options, "run": run}
    with pytest.raises(UserError, match=message) as caught:
        export(options)
    assert "\n" not in str(caught.value)


def test_a_model_without_decode_gives_its_weights(tmp_path, monkeypatch):
    pytest.importorskip("safetensors", reason='pip install -e ".[export]"')
    train(compose(["model=gan", *QUICK, "trainer.max_steps=1"]), tmp_path)
    from genlab.models.gan import GAN

    monkeypatch.setattr(GAN, "decode", None)
    _, spec = export({"run": tmp_path})
    assert list(spec["files"]) == [FILES["safetensors"]]
    assert "GAN has no `decode`" in spec["left_out"]["pt2"]


def test_a_damaged_export_is_said_in_a_sentence(exported, tmp_path):
    with pytest.raises(UserError, match="no complete export"):
        load_export(tmp_path)
    for path in exported[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[: None if path.suffix == ".json" else 200])
    with pytest.raises(UserError, match="cannot be read"):
        load_export(tmp_path)


def test_the_command_line(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["genlab-export", f"run={run}", "formats=pt2", "out=there=[1]"])
    module.main()
    assert "sampler.pt2  largest difference" in capsys.readouterr().out
    assert (tmp_path / "there=[1]" / "sampler.pt2").is_file()
    monkeypatch.setattr(sys, "argv", ["genlab-export", f"run={run}", "format=pt2"])
    with pytest.raises(SystemExit) as left:
        module.main()
    assert left.value.code == 2 and "Did you mean formats=?" in capsys.readouterr().err
