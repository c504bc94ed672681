"""Pictures of a trained model, one method each, with checks of the required capabilities and data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from genlab.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from genlab.batch import Batch
    from genlab.data.module import ArrayData
    from genlab.data.store import ArrayStore
    from genlab.fields.base import Field, Way
    from genlab.metrics.features import Extractor
    from genlab.models.base import GenerativeModel


WHAT = (
    "interpolations",
    "mirror",
    "traversals",
    "categories",
    "classes",
    "swaps",
    "sweep",
    "draws",
    "reconstructions",
    "neighbours",
    "latent_map",
    "factors",
    "frames",
)
FRAMES = 10  # columns of an interpolation, and of samples step by step at most
SHOWN = 20  # classes at most
VALUES = 11  # values of a latent in a traversal, and of an attribute in a sweep
DRAWS = 6  # samples of one condition
STARTS = 1024  # prior draws that a search for latents starts from
ACTIVE = 0.01  # least variance of an active code, Burda et al. (2016)
CODES = 5000  # samples encoded at most
YARDSTICK = 200  # real images whose median distance to the training images is the unit of samples' distances


class Unfit(UserError):
    """A picture that does not fit the model or its data."""


class Looks:
    """Pictures of one model. Each method returns uint8 [H, W, 3], or raises `Unfit` with the reason."""

    def __init__(
        self,
        model: GenerativeModel,
        options: dict[str, Any],
        data: Callable[[], ArrayData],
        extractor: Callable[[ArrayData], Extractor],
    ) -> None:
        """Stores the model; data and extractor are loaded when a picture needs them.

        Args:
            model: Loaded model.
            options: Options of `genlab-visualize`.
            data: Loads the data of the training run.
            extractor: Loads the extractor whose features define the nearest images.
        """
        import torch

        self.model, self.spec, self.options = model, model.spec, options
        self._read_data, self.extractor = data, extractor
        self.n: int = options["n"]
        self.rng = torch.Generator()
        choices = model.run_config.get("choices", {})
        on = f" on {choices['data']}" if "data" in choices else ""
        self.name = f"{choices.get('model', type(model).__name__)}{on}"

    # --- Data, latents and checks ---------------------------------------------------------------------------------

    @cached_property
    def data(self) -> ArrayData:
        """The run's data."""
        return self._read_data()

    @property
    def store(self) -> ArrayStore:
        """The chosen split."""
        return self.data.split(self.options["split"])

    def real(self, n: int) -> tuple[Tensor, Tensor | None]:
        """At most n samples of the split, normalised as in training, and their labels; chosen by the seed."""
        return _some(self.store, self.data.spec.x, n, self.options["seed"])

    def latents(self, n: int) -> Tensor:
        """Prior draws [n, Z], the same for one seed."""
        self.rng.manual_seed(self.options["seed"])
        return self.model.noise(n, self.rng)

    def decode(self, z: Tensor) -> Tensor:
        """Samples [..., *shape] of latents [..., Z], on the CPU."""
        import torch

        flat = z.flatten(0, -2).to(self.model.device)
        each = torch.arange(len(flat)) // (len(flat) // len(z))  # a row of latents has one condition
        x = [self.told(rows, len(z)).decode(flat[i]).cpu() for i, rows in _pieces(each)]
        return torch.cat(x).unflatten(0, z.shape[:-1])

    def encode(self, x: Tensor) -> Tensor:
        """Codes [N, Z] of samples, on the CPU."""
        import torch

        found = [
            self.told(rows, len(x)).encode(x[i].to(self.model.device)).cpu()
            for i, rows in _pieces(torch.arange(len(x)))
        ]
        return torch.cat(found)

    def told(self, each: Tensor, n: int) -> Any:
        """The model under the conditions of some of n real samples, by their number; the model itself without any."""
        from genlab.telling import telling

        if not self.model.given:
            return self.model
        conditions = self.conditions(n)
        return telling(self.model, conditions.rows(each % len(conditions)))

    def each_told(self, look: str, n: int) -> tuple[str, list[str], list[Batch]]:
        """Conditions [n] with each value of the first given column whose values can all be shown, as classes can.

        Other given columns are those of real samples.

        Returns:
            The column, the texts of its values, at most 20 of them, and the conditions for each.

        Raises:
            Unfit: If the model is given no such column.
        """
        import torch

        from genlab.batch import Batch

        for name in self.model.given:
            field = self.spec.fields[name]
            values = field.each(1)
            if values is not None:
                real = self.conditions(n)
                real = real.rows(torch.arange(n) % len(real))
                texts, every = field.text(values)[:SHOWN], Batch({name: values})
                told = (every.rows(torch.full((n,), k))[name] for k in range(len(texts)))
                return name, texts, [real.with_column(name, column).to(self.model.device) for column in told]
        raise Unfit(f"what={look} needs a model that is told classes, which {self.name} is not.")

    def conditions(self, n: int) -> Batch:
        """The columns that the model is given, of at most n real samples: those of `real`."""
        chosen = _choice(len(self.store), n, self.options["seed"])
        return self.data.rows(self.options["split"], self.model.given, chosen)

    def need_given(self, look: str) -> None:
        """Raises `Unfit` if the model is given no column."""
        if not self.model.given:
            raise Unfit(f"what={look} is for models that are given columns, and {self.name} is given none.")

    def need(self, look: str, *capabilities: str) -> None:
        """Raises `Unfit` if the model lacks a capability."""
        for capability in capabilities:
            if not self.model.can(capability):
                raise Unfit(f"{type(self.model).__name__} has no `{capability}`, needed by what={look}.")

    def need_plane_or_images(self, look: str) -> None:
        """Raises `Unfit` unless the data are images or points in the plane."""
        if not self.spec.x.pictorial and self.spec.shape != (2,):
            raise Unfit(f"what={look} needs images or points in the plane, got {self.spec.x.kind} data.")

    def need_images(self, look: str) -> None:
        """Raises `Unfit` unless the data are images."""
        if not self.spec.x.pictorial:
            raise Unfit(f"what={look} needs images, got {self.spec.x.kind} data.")

    def images(self, x: Tensor) -> Tensor:
        """Samples [..., C, H, W] as uint8."""
        return self.spec.render(x.flatten(0, -4)).unflatten(0, x.shape[:-3])

    @property
    def way(self) -> str:
        """The shape of the path between two latents, as text."""
        return "along the arc (slerp)" if self.model.latent_prior == "normal" else "in a straight line"

    # --- Pictures -------------------------------------------------------------------------------------------------

    def interpolations(self) -> np.ndarray:
        """Rows of interpolations between two prior draws."""
        from genlab.looks.sheets import image_sheet, point_ways
        from genlab.sampling.latents import interpolate

        self.need("interpolations", "decode")
        self.need_plane_or_images("interpolations")
        a, b = self.latents(2 * self.n).chunk(2)
        points = not self.spec.x.pictorial
        x = self.decode(interpolate(a, b, 100 if points else FRAMES, self.model.latent_prior))
        title = f"{self.name}: interpolations"
        if points:
            return point_ways(x, self.real(2000)[0], title, f"From one prior draw to another (dot), {self.way}.")
        return image_sheet([("", self.images(x))], title, f"Each row: from one prior draw to another, {self.way}.")

    def mirror(self) -> np.ndarray:
        """Rows from a real image to its mirror image, through the latents of the samples nearest to both.

        Berthelot, Schumm & Metz (2017), arXiv:1703.10717, section 4.3.
        """
        import torch

        from genlab.looks.sheets import image_sheet
        from genlab.sampling.latents import find_latents, interpolate

        self.need("mirror", "decode")
        self.need_images("mirror")
        if self.model.given:
            raise Unfit(f"what=mirror is for models without conditions, and {self.name} is given some.")
        x, _ = self.real(self.n)
        both = torch.cat([x, x.flip(-1)])
        bound = 1.0 if self.model.latent_prior == "uniform" else None
        with self.model.inference(gradients=True):
            z, distance = find_latents(
                self.model.decode,
                both.to(self.model.device),
                self.latents(STARTS),
                steps=self.options["steps"],
                bound=bound,
            )
        a, b = z.cpu().chunk(2)
        frames = self.decode(interpolate(a, b, FRAMES, self.model.latent_prior))
        ends = [self.images(each[:, None]) for each in both.chunk(2)]
        shown = [("real", ends[0]), ("nearest samples, and between them", self.images(frames)), ("mirrored", ends[1])]
        note = (
            f"Outside: test images and their mirror images. Inside: the samples nearest to them (mean |x - G(z)| "
            f"{distance.mean():.3f} in [-1, 1], Adam on z, {self.options['steps']} steps) and the path "
            f"between their latents, {self.way}."
        )
        return image_sheet(shown, f"{self.name}: mirror interpolations", note)

    def traversals(self) -> np.ndarray:
        """Rows that vary one latent each: the most active ones or, without codes, those that change the sample most."""
        from genlab.looks.sheets import image_sheet, point_ways
        from genlab.sampling.latents import activity, traverse

        self.need("traversals", "decode")
        self.need_plane_or_images("traversals")
        start = self.latents(16).cpu()
        base, values, from_where = start[0], None, "a prior draw"
        if self.model.can("encode"):
            codes = self.encode(self.real(CODES)[0])
            if codes.shape[1:] == start.shape[1:]:  # codes have the shape of latents
                base, values, from_where = codes[0], activity(codes), f"the code of one {self.options['split']} sample"
        if values is None:
            values = self._sensitivity(start)
            which, measure = f"of {len(values)} that change it most", "mean change of the sample from end to end"
            count = min(self.n, len(values))
        else:
            active = int((values > ACTIVE).sum())
            which = f"most active of {len(values)} ({active} active: above {ACTIVE})"
            measure = "variance of its code over the data"
            count = min(self.n, active or len(values))
        classes = [d for group in self.model.one_hot_latents for d in group]  # values between 0 and 1 are no latents
        if len(classes) == len(values):
            raise Unfit("All latents are one-hot. Try what=categories.")
        values[classes] = -1
        count = min(count, len(values) - len(classes))
        dims = values.topk(count).indices
        points = not self.spec.x.pictorial
        reach = 3 if self.model.latent_prior == "normal" else 1
        x = self.decode(traverse(base, dims, 100 if points else VALUES, self.model.latent_prior))
        labels = [f"z{d}: {v:.2f}" for d, v in zip(dims.tolist(), values[dims].tolist(), strict=True)]
        title = f"{self.name}: traversals"
        if points:
            note = (
                f"One latent goes from -{reach} to {reach} (dot), others stay at {from_where}. Beside each: {measure}."
            )
            return point_ways(x, self.real(2000)[0], title, note, labels)
        note = (
            f"Each row: one latent goes from -{reach} to {reach}, the others stay at {from_where}. "
            f"The {count} {which}; beside each the {measure}."
        )
        return image_sheet([("", self.images(x))], title, note, labels)

    def categories(self) -> np.ndarray:
        """Rows in which a one-hot part of the latent takes each class, with the rest fixed."""
        from genlab.looks.sheets import image_sheet
        from genlab.sampling.latents import go_through

        self.need("categories", "decode")
        self.need_images("categories")
        groups = self.model.one_hot_latents
        if not groups:
            raise Unfit(f"{type(self.model).__name__} has no one-hot latents.")
        z = go_through(self.latents(self.n).cpu(), groups[: self.n])
        each = "another draw of the rest" if len(groups) == 1 else "another variable of one draw"
        note = f"Each column: one class; each row: {each}."
        return image_sheet([("", self.images(self.decode(z)))], f"{self.name}: categories", note)

    def classes(self) -> np.ndarray:
        """A row of samples for each class that the model can be told."""
        import torch

        from genlab.looks.sheets import image_sheet

        self.need("classes", "sample")
        self.need_images("classes")
        name, texts, told = self.each_told("classes", self.n)
        self.rng.manual_seed(self.options["seed"])
        x = torch.stack([self.model.sample(self.n, given=given, rng=self.rng).cpu() for given in told])
        note = f"Each row: samples that are told one value of {name}."
        return image_sheet([("", self.images(x))], f"{self.name}: samples of each class", note, texts)

    def swaps(self) -> np.ndarray:
        """Rows of one latent each, decoded under every class; style transfer where the latents are codes.

        Kingma et al. (2014), arXiv:1406.5298, section 4.2.
        """
        from genlab.looks.sheets import image_sheet
        from genlab.telling import takes_conditions

        self.need("swaps", "decode")
        self.need_images("swaps")
        if not takes_conditions(self.model.decode):
            raise Unfit(f"what=swaps needs a model whose `decode` is told classes, which {self.name} is not.")
        if self.model.can("encode"):
            x, _ = self.real(self.n)
            z, groups = self.encode(x), [("real", self.images(x[:, None]))]
            source = f"the code of a {self.options['split']} sample, with its own condition"
        else:
            z, groups, source = self.latents(self.n), [], "a prior draw"
        name, texts, told = self.each_told("swaps", len(z))
        z = z.to(self.model.device)
        for text, given in zip(texts, told, strict=True):
            groups.append((text, self.images(self.model.decode(z, given).cpu()[:, None])))
        note = f"Each row: one latent, {source}. Each column: the {name} under which it is decoded."
        return image_sheet(groups, f"{self.name}: one latent under each {name}", note)

    def sweep(self) -> np.ndarray:
        """Rows in which one part of what is given goes through all that it can be, with latent and rest fixed.

        Shown are the parts that change the sample most, such as attributes, for one latent.
        """
        import torch
        import torch.nn.functional as F

        from genlab.looks.sheets import image_sheet
        from genlab.telling import takes_conditions

        self.need("sweep", "decode")
        self.need_images("sweep")
        self.need_given("sweep")
        if not takes_conditions(self.model.decode):
            raise Unfit(f"Latents of {self.name} hold what samples are told. Try what=categories.")
        z, first = self.latents(1), self.conditions(1)
        ways = self._ways(first)
        found = [self._along(z[0], first, name, way) for name, way in ways]
        effect = torch.stack([(x[-1].float() - x[0].float()).abs().mean() / 127.5 for x in found])
        order = effect.argsort(descending=True)[: self.n].tolist()
        most = max(len(found[i]) for i in order)
        cells = torch.stack([F.pad(found[i], (0,) * 7 + (most - len(found[i]),), value=255) for i in order])
        several = len(self.model.given) > 1
        labels = []
        for i in order:
            name, way = ways[i]
            part = f"{name}: {way.part}" if several and way.part else way.part or name
            labels.append(f"{part}, {way.texts[0]} to {way.texts[-1]}: {effect[i]:.2g}")
        note = (
            f"Each row: one part of {', '.join(self.model.given)} varies, the rest and the latent stay. The "
            f"{len(order)} of {len(ways)} that change the sample most; beside each the mean |difference| of its ends, "
            "in [-1, 1]."
        )
        return image_sheet([("", cells)], f"{self.name}: sweep", note, labels)

    def _ways(self, first: Batch) -> list[tuple[str, Way]]:
        """The ways through each given column from the values of one row, with the column's name."""
        given = self.model.given
        ways = [(name, way) for name in given for way in self.spec.fields[name].ways(first[name], VALUES)]
        if not ways:
            told = ", ".join(given)
            raise Unfit(f"what=sweep varies attributes, and {self.name} is given {told}. Try what=swaps for classes.")
        return ways

    def _along(self, z: Tensor, row: Batch, name: str, way: Way) -> Tensor:
        """Images [T, C, H, W] of one latent [Z] and one row of conditions in which a column goes its way."""
        import torch

        from genlab.telling import telling

        told = row.rows(torch.zeros(len(way.values), dtype=torch.long)).with_column(name, way.values)
        model = telling(self.model, told.to(self.model.device))
        return self.images(model.decode(z.to(self.model.device).expand(len(way.values), -1)).cpu())

    def draws(self) -> np.ndarray:
        """Rows of a condition, several samples of it, and the real sample that it was taken from."""
        import torch

        from genlab.looks.sheets import alike, image_sheet

        self.need("draws", "sample")
        self.need_images("draws")
        self.need_given("draws")
        given, (real, _) = self.conditions(self.n), self.real(self.n)
        each = torch.arange(len(real)).repeat_interleave(DRAWS)
        self.rng.manual_seed(self.options["seed"])
        parts = (given.rows(rows).to(self.model.device) for _, rows in _pieces(each))
        x = torch.cat([self.model.sample(len(told), given=told, rng=self.rng).cpu() for told in parts])
        x = x.unflatten(0, (len(real), DRAWS))
        fields = {name: self.spec.fields[name] for name in self.model.given}
        shown = [(name, field.cells(given[name])[:, None]) for name, field in fields.items() if field.pictured]
        texts = [field.text(given[name]) for name, field in fields.items() if not field.pictured]
        labels = [", ".join(row) for row in zip(*texts, strict=True)] if texts else None
        shown += [("draws", self.spec.x.cells(x.flatten(0, 1)).unflatten(0, (len(real), DRAWS)))]
        shown += [("real", self.spec.x.cells(real)[:, None])]
        apart = (x[:, 1:] - x[:, :-1]).abs().mean()
        note = (
            f"Each row: what was given ({', '.join(fields)}), {DRAWS} draws, and the real sample. Mean |difference| of "
            f"two draws {apart:.3f}, of two real samples {(real[1:] - real[:-1]).abs().mean():.3f}, in [-1, 1]."
        )
        return image_sheet(alike(shown), f"{self.name}: draws", note, labels)

    def _sensitivity(self, start: Tensor) -> Tensor:
        """Effect of each latent on the sample, [Z]: mean |difference| between its extremes, over starting points."""
        import torch

        from genlab.sampling.latents import traverse

        dims = torch.arange(start.shape[1])
        moved = [
            (self.decode(traverse(z, dims, 2, self.model.latent_prior)).diff(dim=1)).abs().flatten(1).mean(dim=1)
            for z in start
        ]
        return torch.stack(moved).mean(dim=0)

    def reconstructions(self) -> np.ndarray:
        """Pairs of a real sample and its reconstruction."""
        import torch

        from genlab.looks.sheets import image_sheet, point_ways

        self.need("reconstructions", "reconstruct")
        self.need_plane_or_images("reconstructions")
        points = not self.spec.x.pictorial
        x, _ = self.real(200 if points else 6 * self.n)
        made = torch.cat(
            [
                self.told(rows, len(x)).reconstruct(x[i].to(self.model.device)).cpu()
                for i, rows in _pieces(torch.arange(len(x)))
            ]
        )
        error = (x - made).square().mean()
        title = f"{self.name}: reconstructions"
        if points:
            note = f"Lines from {self.options['split']} points to their reconstructions (dot)."
            note += f" Mean squared error {error:.3g}."
            return point_ways(torch.stack([x, made], dim=1), self.real(2000)[0], title, note)
        pairs = [
            ("real, model", self.images(torch.stack([a, b], dim=1)))
            for a, b in zip(x.split(self.n), made.split(self.n), strict=True)
            if len(a) == self.n
        ]
        if not pairs:
            raise Unfit(f"The {self.options['split']} split holds {len(x)} samples, fewer than n={self.n}.")
        note = f"{self.options['split'].capitalize()} images, each with its reconstruction on the right. "
        return image_sheet(pairs, title, f"{note}Mean squared error {error:.4f} in [-1, 1].")

    def neighbours(self) -> np.ndarray:
        """Samples and their nearest training images, in pixels and in features."""
        import torch

        from genlab.looks.sheets import image_sheet
        from genlab.metrics.neighbours import nearest

        self.need("neighbours", "sample")
        self.need_images("neighbours")
        self.rng.manual_seed(self.options["seed"])
        samples = self.spec.render(self.told(torch.arange(self.n), self.n).sample(self.n, rng=self.rng).cpu())
        train = self.data.judged("train")
        rows = _choice(len(train), self.options["train_images"], self.options["seed"])
        k = min(5, len(rows))

        def parts() -> Iterator[Tensor]:
            return (train.gather(part) for part in rows.split(1024))

        unseen = self.spec.render(self.real(YARDSTICK)[0])
        places, distance = nearest(torch.cat([samples, unseen]), parts(), k)
        yardstick = distance[len(samples) :, 0].median().clamp_min(1e-12)
        labels = [f"{d / yardstick:.2f}" for d in distance[: len(samples), 0]]
        columns = [
            ("sample", samples[:, None]),
            ("nearest in pixels", self._gathered(train, rows, places, len(samples))),
        ]
        judge = self.extractor(self.data)

        def features(images: Tensor) -> Tensor:
            return torch.cat([judge(part.to(self.model.device))[0].cpu() for part in images.split(256)])

        places, _ = nearest(features(samples), (features(part) for part in parts()), k)
        columns.append((f"nearest in features of {judge.name}", self._gathered(train, rows, places, len(samples))))
        note = (
            f"Of {len(rows)} training images. On the left: distance to the nearest one in pixels, over the median "
            f"of {len(unseen)} {self.options['split']} images; 0 is a copy."
        )
        return image_sheet(columns, f"{self.name}: samples and their nearest training images", note, labels)

    def frames(self) -> np.ndarray:
        """Rows of samples at the steps of their generation."""
        import torch

        from genlab.looks.sheets import image_sheet

        self.need("frames", "frames")
        self.need_images("frames")
        self.rng.manual_seed(self.options["seed"])
        told = self.told(torch.arange(self.n), self.n)
        x = told.frames(self.n, rng=self.rng).cpu().transpose(0, 1)
        last = x.shape[1] - 1
        shown = torch.linspace(0, last, min(last + 1, FRAMES)).round().long()
        note = f"Each row: one sample at steps {', '.join(map(str, shown.tolist()))}."
        return image_sheet([("", self.images(x[:, shown]))], f"{self.name}: step by step", note)

    def _gathered(self, store: ArrayStore, rows: Tensor, places: Tensor, n: int) -> Tensor:
        """The images uint8 [n, k, C, H, W] of a store at `rows[places[:n]]`, places [N, k]."""
        chosen = rows[places[:n].flatten()]
        return store.gather(chosen).unflatten(0, (n, -1))

    def latent_map(self) -> np.ndarray:
        """The codes of the split in two dimensions."""
        import torch

        from genlab.floats import in_float64
        from genlab.looks.sheets import code_map

        self.need("latent_map", "encode")
        x, y = self.real(CODES)
        codes = self.encode(x).flatten(1)
        note = f"The codes of {len(x)} {self.options['split']} samples"
        names = [f"z{i}" for i in range(codes.shape[1])]
        if codes.shape[1] == 1:
            codes = torch.cat([codes, (torch.zeros(len(x)) if y is None else y)[:, None].to(codes)], dim=1)
            names.append("class")
        elif codes.shape[1] > 2:
            centred = in_float64(codes) - in_float64(codes).mean(dim=0)
            _, values, directions = torch.linalg.svd(centred, full_matrices=False)
            shares = values.square() / values.square().sum().clamp_min(1e-300)
            names = [f"principal component {i + 1} ({shares[i]:.0%} of the variance)" for i in range(2)]
            note += f", {codes.shape[1]} numbers each, in their first two principal components"
            codes = centred @ directions[:2].T
        note += "." if y is None else ", coloured by class."
        return code_map(codes, y, self.spec.class_names, f"{self.name}: latent map", note, names)

    def factors(self) -> np.ndarray:
        """|corr| of latents and known factors: latents assigned to factors first, then by largest |corr|."""
        from genlab.looks.sheets import heat_map
        from genlab.metrics.factors import coded, correlations

        self.need("factors", "encode")
        names = self.spec.factor_names
        if not names:
            raise Unfit("what=factors needs data with known factors, such as data=shapes.")
        split = self.options["split"]
        codes, factor = coded(self.model, self.data.batches(split, 256, limit=CODES))
        matrix = correlations(codes, factor)
        first = list(getattr(self.model, "factor_units", ()))
        others = [i for i in matrix.amax(dim=1).argsort(descending=True).tolist() if i not in first]
        rows = [*first, *others][: max(self.n, len(first), len(names))]
        note = f"|corr| of latents and factors over {len(codes)} {split} samples; {len(rows)} of {len(matrix)} latents."
        return heat_map(matrix[rows], [f"z{i}" for i in rows], names, f"{self.name}: factors", note)


def _pieces(each: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """256 rows at a time: where they are, and their part of `each` [N]."""
    for start in range(0, len(each), 256):
        yield slice(start, start + 256), each[start : start + 256]


def _choice(size: int, n: int, seed: int) -> Tensor:
    """At most n positions below size: all in order, or n drawn from the seed."""
    import torch

    if n >= size:
        return torch.arange(size)
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:n]


def _some(store: ArrayStore, field: Field, n: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """At most n samples of a store (images in [-1, 1]) and their labels, chosen by the seed."""
    rows = _choice(len(store), n, seed)
    return field.normalise(store.gather(rows)), None if store.y is None else store.y[rows]
