"""`genlab-export`, `python scripts/export.py run=...`: weights and sampler in formats that need no genlab."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import genlab
from genlab.cli import app
from genlab.commands import short
from genlab.config.arguments import parse, take_path
from genlab.errors import UserError, install

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from genlab.models.base import GenerativeModel

log = logging.getLogger("genlab")
FORMATS = ("safetensors", "pt2", "onnx")
FILES = {"safetensors": "weights.safetensors", "pt2": "sampler.pt2", "onnx": "sampler.onnx"}
PACKAGES = {"safetensors": ("safetensors",), "pt2": (), "onnx": ("onnx", "onnxruntime", "onnxscript")}
SPEC = "spec.json"
FORMAT = 1  # of spec.json
TOLERANCE = 1e-4  # relative to the largest absolute value of the samples; one grey level is 80 times as much
PRIORS = {"normal": "standard normal", "uniform": "uniform on [-1, 1]"}
CHECKED = (1, 3, 8)  # batch sizes of the check; only the last one is traced
Inputs = tuple["Tensor", ...]  # latents, and the given columns in their order
Draw = Callable[..., "Tensor"]

HELP = f"""genlab-export: take a trained model out of genlab; the files go to RUN/export/.

  genlab-export run=outputs/latest                 all formats that this machine and the model allow
  genlab-export run=RUN/checkpoints/best.ckpt formats=safetensors,onnx out=FOLDER

Files
  {FILES["safetensors"]:<20} all weights, averaged where the run kept an average
  {FILES["pt2"]:<20} latents to samples, for torch.export.load: no genlab needed
  {FILES["onnx"]:<20} the same for onnxruntime and others; any number of latents
  {SPEC:<20} description of the data, prior of the latents, the model's config, and the checks

The folder holds one export: the files of an earlier one are replaced or removed.
Every exported sampler is read back and compared with the model on the same latents. It is written only if the samples
agree to {TOLERANCE:g} of their largest value.

Keys: run, formats (all), out, seed (0: of the latents for the check), allow_targets ([mypackage.*])"""
TEXT = ("run", "formats", "out")
DEFAULTS: dict[str, Any] = {"run": None, "formats": None, "out": None, "seed": 0, "allow_targets": []}


def main() -> None:
    """The command line."""
    with app.errors_as_sentences():
        if app.print_if_asked(HELP):
            return
        typed = {key: take_path(sys.argv[1:], key)[0] for key in TEXT}
        options = parse([a for a in sys.argv[1:] if a.partition("=")[0] not in TEXT], DEFAULTS)
        options |= {key: value for key, value in typed.items() if value not in (None, "null")}
        folder, spec = export(options)
        for name, facts in spec["files"].items():
            check = f"largest difference {facts['largest_difference']:.1e}" if "largest_difference" in facts else ""
            print(f"{short(folder / name)}  {check}")
        print(short(folder / SPEC))
        for reason in spec["left_out"].values():
            print(reason, file=sys.stderr)


def export(options: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Writes weights, samplers and their description.

    Args:
        options: See `HELP`; missing keys have their defaults.

    Returns:
        The folder, and the content of its `spec.json`.

    Raises:
        UserError: If the run cannot be read, or a format that was asked for by name cannot be made or its samples
            differ from the model's.
    """
    from genlab.files import write_json
    from genlab.runs.folder import find_run, read_checkpoint

    options = {**DEFAULTS, **options}
    wanted, named = _formats(options["formats"])
    if options["run"] is None:
        raise UserError("Say what to export: run=outputs/latest, another run folder, or a .ckpt file.")
    folder, path = find_run(options["run"])
    import torch

    from genlab.seeding import preserved_random_states

    home = Path(options["out"] or folder / "export")
    allow = tuple(options["allow_targets"])
    left_out: dict[str, str] = {}
    files: dict[str, dict[str, Any]] = {}
    with preserved_random_states():
        model = genlab.load(path, allow_targets=allow)
        averaged = keep_averages(model)
        rng = torch.Generator().manual_seed(options["seed"])
        inputs = [_inputs(model, n, rng) for n in CHECKED] if model.can("decode") else []
        samples = [_decoded(model, *each) for each in inputs]
        for name in wanted:
            try:
                content, draw = _make(name, model, inputs)
                facts: dict[str, Any] = {}
                if inputs:
                    facts = {"largest_difference": compare(draw, inputs, samples, name), "tolerance": TOLERANCE}
            except UserError as error:
                if named:
                    raise
                left_out[name] = str(error)
                continue
            _write(home / FILES[name], content)
            files[FILES[name]] = facts
    if not files:
        raise UserError(f"Nothing could be exported. {next(iter(left_out.values()))}")
    iteration = int(read_checkpoint(path)["global_step"])
    spec = {"checkpoint": path.name, "iteration": iteration, "averaged": averaged, **_described(model)}
    spec |= {"files": files, "left_out": left_out}
    for name in set(FILES.values()) - files.keys():  # of an earlier export, perhaps of another checkpoint
        (home / name).unlink(missing_ok=True)
    write_json(home / SPEC, spec)
    return home, spec


def _described(model: GenerativeModel) -> dict[str, Any]:
    """The part of `spec.json` that describes the model and its samples."""
    import torch

    return {
        "format": FORMAT,
        "genlab": genlab.__version__,
        "torch": torch.__version__,
        "data": model.spec.to_dict(),
        "to_uint8": "x * 127.5 + 128, cut to 0..255, rounded down" if model.spec.images else None,
        "latents": {"size": getattr(model, "latent_dim", None), "prior": PRIORS[model.latent_prior]},
        "given": {name: model.spec.fields[name].to_dict() for name in model.given},
        "choices": model.run_config.get("choices", {}),
        "model": model.run_config.get("model"),
    }


def load_export(folder: str | Path, allow_targets: Sequence[str] = ()) -> GenerativeModel:
    """The model of an export folder: built from its `spec.json`, with the weights of its safetensors.

    Raises:
        UserError: If a file is missing or damaged, or the config has a target that is not allowed.
    """
    import json

    folder = Path(folder)
    try:
        spec = json.loads((folder / SPEC).read_text())
        content = (folder / FILES["safetensors"]).read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is no complete export of genlab: {error}") from error
    return _model_of(content, spec["model"], spec["data"], allow_targets)


def _model_of(content: bytes, config: Any, data: Any, allow_targets: Sequence[str]) -> GenerativeModel:
    from safetensors import SafetensorError
    from safetensors.torch import load

    from genlab.config.instantiate import build_model, check_allowed, check_signatures
    from genlab.data.spec import DataSpec

    check_allowed(config, allow_targets)
    check_signatures(config, "model")
    model = build_model(config)
    try:
        model.load_state_dict(load(content))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"The exported weights cannot be read or do not fit the model: {error}") from error
    model.spec = DataSpec.from_dict(data)
    return model.eval()


def _write(path: Path, content: bytes) -> None:
    from genlab.files import write_atomic

    try:
        write_atomic(path, lambda file: file.write(content))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}). Try out=FOLDER.") from error


def _formats(asked: str | Sequence[str] | None) -> tuple[tuple[str, ...], bool]:
    """The formats, and whether the user named them."""
    if asked is None:
        return FORMATS, False
    names = asked.strip("[]").replace(" ", "").split(",") if isinstance(asked, str) else list(asked)
    for name in names:
        if name not in FORMATS:
            raise UserError(f"formats takes {', '.join(FORMATS)}, got {name!r}.")
    return tuple(names), True


def keep_averages(model: GenerativeModel) -> bool:
    """Replaces the live weights by the moving averages for good. Returns whether there were any."""
    model.averages.settle()
    model.requires_grad_(False)
    return model.has_averages


def _inputs(model: GenerativeModel, n: int, rng: torch.Generator) -> Inputs:
    """Latents [n, Z], and random values [n, ...] of each column that the model is given.

    Raises:
        UserError: If a column holds sequences.
    """
    columns = []
    for name in model.given:
        field = model.spec.fields[name]
        if field.ragged:
            raise UserError(f"{type(model).__name__} is given {name}, sequences of any length, and cannot be exported.")
        columns.append(cast("Tensor", field.random(n, rng)))
    return (model.noise(n, rng), *columns)


def _decoded(model: GenerativeModel, z: Tensor, *columns: Tensor) -> Tensor:
    """The samples of latents [N, Z] and given columns [N, ...]."""
    from genlab.batch import Batch

    if not model.given:
        return model.decode(z)
    return model.decode(z, Batch(dict(zip(model.given, columns, strict=True))))


def compare(draw: Draw, inputs: list[Inputs], samples: list[Tensor], name: str) -> float:
    """The largest difference between the samples of an export and of the model for the same latents and conditions.

    Raises:
        UserError: If it exceeds the tolerance, or the shapes differ.
    """
    import torch

    differences = []
    for each, x in zip(inputs, samples, strict=True):
        drawn = draw(*each)
        if drawn.shape != x.shape:
            raise UserError(f"The {name} sampler draws {list(drawn.shape)} where the model draws {list(x.shape)}.")
        differences.append((drawn - x).abs().max())
    largest = float(torch.stack(differences).max())  # Python's own max would lose a NaN
    bound = TOLERANCE * max(float(x.abs().max()) for x in samples)
    if not largest <= bound:
        raise UserError(
            f"The {name} sampler draws other samples than the model from the same latents (largest difference "
            f"{largest:.2g}, allowed {bound:.2g}), so it was not written. The other formats: formats="
            f"{','.join(f for f in FORMATS if f != name)}"
        )
    return largest


# --- The formats ----------------------------------------------------------------------------------------------------


def _make(name: str, model: GenerativeModel, inputs: list[Inputs]) -> tuple[bytes, Draw]:
    """The bytes of a file, and the sampler that was read back from them.

    Raises:
        UserError: If a package is missing, or the model cannot be exported in this format.
    """
    missing = [package for package in PACKAGES[name] if find_spec(package) is None]
    if missing:
        raise UserError(f"{FILES[name]} needs {' and '.join(missing)}: {install('export')}")
    if name == "safetensors":
        return _safetensors(model)
    if not inputs:
        raise UserError(
            f"{FILES[name]} cannot be made: {type(model).__name__} has no `decode` from latents to samples."
        )
    return (_pt2 if name == "pt2" else _onnx)(model, inputs[-1])


def _safetensors(model: GenerativeModel) -> tuple[bytes, Draw]:
    from safetensors.torch import save

    # Each tensor by itself: safetensors refuses weights that share memory.
    weights = {name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}
    content = save(weights, metadata={"format": "pt", "genlab": genlab.__version__})
    # The config passed the check of its targets when the run was loaded.
    copy = _model_of(content, model.run_config["model"], model.spec.to_dict(), ("*",))
    return content, lambda *inputs: _decoded(copy, *inputs)  # never called for a model without latents


def _pt2(model: GenerativeModel, inputs: Inputs) -> tuple[bytes, Draw]:
    import torch

    file = io.BytesIO()
    torch.export.save(trace(model, *inputs), file)
    content = file.getvalue()
    sampler = torch.export.load(io.BytesIO(content)).module()
    return content, lambda *inputs: sampler(*inputs)


def _onnx(model: GenerativeModel, inputs: Inputs) -> tuple[bytes, Draw]:
    import onnxruntime
    import torch

    program, names = trace(model, *inputs), ["z", *model.given]
    try:
        with _quiet():
            made = torch.onnx.export(program, inputs, dynamo=True, verbose=False, input_names=names, output_names=["x"])
        assert made is not None
        content = made.model_proto.SerializeToString()
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # an operator without a counterpart, a model beyond 2 GB, ...
        raise UserError(f"{FILES['onnx']} cannot be made of {type(model).__name__}: {_first_line(error)}") from error

    def draw(*inputs: Tensor) -> Tensor:
        named = {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, named)[0])

    return content, draw


def trace(model: GenerativeModel, z: Tensor, *columns: Tensor) -> Any:
    """The model's `decode` as a `torch.export` program for any number of latents, with the weights that it needs.

    Args:
        model: Holds the weights to export, see `keep_averages`.
        z: Latents [N, Z], N >= 2.
        *columns: Values [N, ...] of each column that the model is given.

    Raises:
        UserError: If the model's code cannot be traced.
    """
    import torch

    class Sampler(torch.nn.Module):
        """Maps latents and given columns to samples."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, z: Tensor, *columns: Tensor) -> Tensor:
            return _decoded(self.model, z, *columns)

    sampler = Sampler().eval()
    number = torch.export.Dim("n", min=1)
    shapes: Any = ({0: number}, tuple({0: number} for _ in columns)) if columns else ({0: number},)
    try:
        with model.inference(gradients=True), torch.no_grad(), _quiet():
            program = torch.export.export(sampler, (z, *columns), dynamic_shapes=shapes)
            unused = _unused(program)
            if unused:  # such as a discriminator's
                with _without(sampler, unused):
                    try:
                        program = torch.export.export(sampler, (z, *columns), dynamic_shapes=shapes)
                    except Exception as error:  # the code reads a weight that no operation uses
                        log.debug("The sampler keeps weights that it does not use: %s", error)
            return program
    except Exception as error:  # the class of the error depends on torch's version
        raise UserError(f"{type(model).__name__} cannot be traced by torch.export: {_first_line(error)}") from error


def _unused(program: Any) -> list[str]:
    """Names of the weights and buffers of a program that no operation uses."""
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    return [names[node.name] for node in nodes if not node.users]


@contextmanager
def _without(module: nn.Module, names: list[str]) -> Iterator[None]:
    """Removes these weights and buffers within the block."""
    taken = []
    for name in names:
        owner, _, key = name.rpartition(".")
        inside = module.get_submodule(owner)
        store: dict[str, Any] = inside._parameters if key in inside._parameters else inside._buffers
        taken.append((store, key, store[key]))
        store[key] = None
    try:
        yield
    finally:
        for store, key, value in taken:
            store[key] = value


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporters' log lines and warnings."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


if __name__ == "__main__":
    main()
