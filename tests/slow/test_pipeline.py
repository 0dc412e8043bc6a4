"""The pipeline through real `dvc` commands in a temporary repository, as a user types them."""

import json

import pytest
import yaml

from repository import RESULTS, STAGES, Repository, stages_run, tiny_params


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A repository whose pipeline has run once, on images that DVC tracks; committed with its results."""
    repo = Repository(tmp_path_factory.mktemp("pipeline"))
    repo.run("git", "rm", "-q", "--cached", "data/raw/tiny.npz")
    repo.dvc("add", "data/raw/tiny.npz")
    assert stages_run(repo.dvc("repro")) == list(STAGES)
    repo.dvc("remote", "add", "--default", "store", str(repo.path.with_name("store")))
    repo.commit("First run")
    return repo


def test_a_clone_without_data_pulls_what_it_needs_and_trains_only_what_changed(repo, tmp_path):
    repo.dvc("push")
    clone = repo.clone(tmp_path / "clone")
    assert not clone.bytes_of("data/raw/tiny.npz", *RESULTS[:-1])
    assert stages_run(clone.dvc("repro", "--pull", "--allow-missing")) == []
    clone.edit("params.yaml", "- fc2\n", "- fc1\n  - fc2\n")
    assert stages_run(clone.dvc("repro", "--pull", "--allow-missing")) == ["finetune_fc", "report"]


def test_a_third_variant_needs_no_python(repo):
    """docs/settings.md says so: a section in params.yaml; in dvc.yaml a stage, and a line in `report`."""
    params = tiny_params()
    params["finetune_all"] = params["finetune_fc"] | {"trainable": ["conv1", "conv2", "fc1", "fc2", "output"]}
    (repo.path / "params.yaml").write_text(json.dumps(params))
    pipeline = yaml.safe_load((repo.path / "dvc.yaml").read_text())
    stages = pipeline["stages"]
    stages["finetune_all"] = json.loads(json.dumps(stages["finetune_fc"]).replace("finetune_fc", "finetune_all"))
    stages["report"]["deps"] += ["reports/finetune_all", "reports/timing/finetune_all.json"]
    (repo.path / "dvc.yaml").write_text(json.dumps(pipeline))
    assert stages_run(repo.dvc("repro")) == ["finetune_all", "report"]
    metrics = json.loads((repo.path / "reports/metrics.json").read_text())
    assert metrics["finetune_all"]["trainable_parameters"] == metrics["pretrain"]["trainable_parameters"]
    assert (repo.path / "reports/figures/confusion_finetune_all.png").exists()
