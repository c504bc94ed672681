"""Real files for tests of data sets."""

import tarfile

import pytest


@pytest.fixture(scope="session")
def unpacked(shared_data, tmp_path_factory):
    """`unpacked(name)` is a folder with the content of the archive name.tar.xz; skips without it."""
    folders = {}

    def folder(name):
        if name not in folders:
            path = shared_data / f"{name}.tar.xz"
            if not path.is_file():
                pytest.skip(f"real data not found: {path}")
            folders[name] = tmp_path_factory.mktemp(name)
            with tarfile.open(path) as archive:
                archive.extractall(folders[name], filter="data")
        return folders[name]

    return folder
