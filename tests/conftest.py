"""Fixtures of several files."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from repository import Repository
from stages import settings
from stages.settings import Settings
from tiny import TINY, tiny_arrays


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a folder with the default settings and the small files that they name."""
    (tmp_path / "data/raw").mkdir(parents=True)
    (tmp_path / "data/raw/same.yaml").write_text("same: data.path\n")
    (tmp_path / "data/raw/random.yaml").write_text("weights: random\n")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(Settings().model_dump(), sort_keys=False))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def params(workspace: Path) -> Callable[..., Settings]:
    """Change settings in the workspace's params.yaml and load it: ``params(**{"pretrain.epochs": 1})``."""

    def change(**changes) -> Settings:
        raw = yaml.safe_load(settings.PARAMS.read_text())
        for key, value in changes.items():
            section, _, leaf = key.rpartition(".")
            (raw[section] if section else raw)[leaf] = value
        settings.PARAMS.write_text(yaml.safe_dump(raw, sort_keys=False))
        return settings.load()

    return change


@pytest.fixture
def tiny_dataset(workspace: Path) -> dict[str, np.ndarray]:
    """Save the tiny dataset where `TINY` expects it, and return its arrays."""
    arrays = tiny_arrays()
    np.savez(workspace / TINY["data.path"], **arrays)
    return arrays


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a dataset to write."""
    return tmp_path / "dataset.npz"


@pytest.fixture
def tiny(params: Callable[..., Settings], tiny_dataset: dict) -> Settings:
    """Write settings for a small network on the tiny dataset to the workspace's params.yaml."""
    return params(**TINY)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Repository, Path]:
    """Make a repository, run its pipeline once, and copy its folder."""
    repo = Repository(tmp_path_factory.mktemp("run") / "repository")
    repo.dvc("repro")
    return repo, shutil.copytree(repo.path, repo.path.with_name("saved"))


@pytest.fixture
def repo(first_run: tuple[Repository, Path]) -> Repository:
    """Return the repository as its first run left it."""
    repo, saved = first_run
    shutil.rmtree(repo.path)
    shutil.copytree(saved, repo.path)
    return repo
