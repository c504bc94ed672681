"""Reconstructions beside their originals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from genlab.judging.measure import About, Measure

if TYPE_CHECKING:
    from genlab.judging.subject import Subject
    from genlab.metrics.scores import Scores


class Reconstruction(Measure):
    """MSE, PSNR and SSIM of reconstructed images; the mean squared error of other data."""

    name, place, section = "reconstruction", 50, "reconstruction"
    needs = ("reconstruct",)
    about: Mapping[str, About] = {
        "recon_mse": About("reconstruction MSE", "lower"),
        "recon_psnr": About("PSNR, dB", "higher"),
        "recon_ssim": About("SSIM", "higher"),
    }
    monitor = ("recon_mse",)

    def take(self, subject: Subject) -> Iterable[Scores]:
        """See `genlab.metrics.reconstruction`."""
        import torch

        from genlab.metrics.reconstruction import reconstruction_scores
        from genlab.metrics.scores import Scores

        pairs = subject.reconstructions(self.number(subject))
        if subject.pictures:
            return [reconstruction_scores(pairs)]
        errors = torch.cat([(a - b).double().square().flatten(1).mean(dim=1) for a, b in pairs])
        return [Scores({"recon_mse": errors.mean().item()}, {"n_real": len(errors)})]


class FeaturesOfReconstructions(Measure):
    """FID of reconstructions, and the share of features that they lose."""

    name, place, part_of = "rfid", 51, "reconstruction"
    needs = ("pictures", "reconstruct", "extractor")
    about: Mapping[str, About] = {
        "rfid": About("FID of reconstructions", "lower"),
        "recon_features": About("share of features lost in reconstruction", "lower"),
    }
    cheap = False

    def take(self, subject: Subject) -> Iterator[Scores]:
        """{"rfid", "recon_features"}."""
        from genlab.metrics.features import features_of
        from genlab.metrics.images import fid
        from genlab.metrics.reconstruction import feature_error
        from genlab.metrics.scores import Scores

        n = self.number(subject)
        render, extractor = subject.data.spec.render, subject.extractor
        assert extractor is not None
        recon = features_of(extractor, (render(made) for _, made in subject.reconstructions(n)))
        real = subject.real_features(n)
        values = fid(real, recon)
        found = Scores({"rfid": values["fid"], "recon_features": feature_error(real, recon)}, values.card)
        yield found.named(extractor.name)
