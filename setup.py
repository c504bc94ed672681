"""Packs `configs/` into the wheel as `genlab/configs`. All else stands in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """An editable install copies nothing: the code of a checkout takes the configs beside it."""

    def run(self) -> None:
        """Copies the package, then the configs."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "genlab", "configs")
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build
            shutil.copytree("configs", target, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithConfigs})
