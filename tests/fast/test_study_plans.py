"""Studies without their runs: plans, the experiments they ask for, and the record of those."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from distributed import Client

from repository import ROOT
from stages.settings import Settings
from stages.shared.errors import UserError
from stages.shared.yaml_files import parse_yaml
from studies import __main__, charts, experiments, plan, repository, runner
from studies.cluster import FOLDER
from studies.plan import Plan
from studies.worker import Base, Outcome
from tools.experiments import OF_A_STUDY

PLANS = {path.stem: parse_yaml(path.read_text()) for path in sorted(ROOT.glob("studies/*.yaml"))}
MNIST = PLANS["mnist"]


@pytest.fixture
def expand(tmp_path, monkeypatch):
    """Expand a plan into experiments, named plan_... without a hash, where the default settings are committed."""

    def expand(content: dict, *changes: str) -> dict:
        monkeypatch.setattr(experiments, "committed_settings", lambda: Settings().by_key())
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        expanded = experiments.expand(plan.load(path, changes), "plan")
        assert all(map(OF_A_STUDY.search, expanded))  # `make experiments` leaves them out by their names
        return {name.rpartition("_")[0]: settings for name, settings in expanded.items()}  # without hashes

    return expand


@pytest.mark.parametrize("content", PLANS.values(), ids=PLANS)
def test_the_plans_of_the_repository_are_valid_and_their_models_look_different(content, expand):
    assert len(expand(content)) == len(content["seeds"]) * len(content["images_per_class"]) * len(content["runs"])
    study = Plan.model_validate(content)
    replaced = {name for choice in study.choices if choice.choose in study.asked for name in choice.among} - study.asked
    looks = [tuple(look.items()) for model, look in charts.styles(study).items() if model not in replaced]
    assert len(looks) == len(set(looks)) > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images_per_class": {20: {"data.target_per_class": 9}}}, "data.target_per_class: was 9, expected 20"),
        ({"questions": [{"ask": "?", "first": "none", "second": "none"}]}, "was 'none', expected one of"),
        ({"seeds": [1, 1]}, "expected each once"),
        ({"settings": {"data.path": "${oc.env:TOKEN}.npz"}}, "was '${oc.env:TOKEN}.npz', expected plain values"),
        ({"runs": MNIST["runs"] | {"pretrained": {"seed": "${oc.env:T}"}}}, "${oc.env:T}'}, expected plain values"),
        ({"page": "docs/page.md"}, "page: was an unknown key"),
        (
            {"models": MNIST["models"] | {"a": {"b": {"run": "random", "stage": "finetune_fc", "control": True}}}},
            "models: a, b: control: was true, expected finetune_fc.control: true in its run",
        ),
    ],
)
def test_a_bad_plan_is_refused_in_one_line(change, message, expand):
    with pytest.raises(UserError) as error:
        expand(MNIST | change)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_given_with_the_command_override_the_plans(expand):
    changed = expand(MNIST, "data.path=a b.npz", "finetune_fc.trainable=[fc1,output]")
    assert {tuple(settings["finetune_fc.trainable"]) for settings in changed.values()} == {("fc1", "output")}
    arguments = experiments.overrides(changed["plan_random_20_s1"])  # as Hydra reads them
    assert {'data.path="a b.npz"', 'finetune_fc.trainable=["fc1", "output"]', "threads=null"} < set(arguments)
    for change, message in (
        ("seed", "was 'seed', expected KEY=VALUE"),
        ("pretrain.epochs=2", "sets it in some"),
    ):
        with pytest.raises(UserError, match=message):
            expand(MNIST, change)
    with pytest.raises(UserError, match=r"--help.yaml: expected a file name"):
        plan.load(Path("--help.yaml"))


def test_all_ways_run_with_all_images_first_and_with_two_seeds_at_a_time(expand):
    names = list(expand(PLANS["photos"] | {"images_per_class": {"all": {}, 20: {}}, "seeds": [1, 2, 3]}))
    assert names[:4] == ["plan_probe_all_s1", "plan_layers_all_s1", "plan_everything_all_s1", "plan_probe_all_s2"]
    assert names[6] == "plan_probe_20_s1"
    assert names[12:16] == [*(name.replace("s1", "s3") for name in names[:3]), "plan_probe_20_s3"]
    photos = Plan.model_validate(PLANS["photos"])
    assert list(photos.with_number(35, smallest=32).images_per_class) == [10, 25, 35]  # the mean of the classes
    assert list(photos.with_number(31, smallest=31).images_per_class) == [10, 31]


def test_a_backbone_on_the_command_line_changes_settings_and_runs(expand):
    backbone = expand(PLANS["photos"], "data.target_path=photos", "model.backbone=MobileNetV2", "data.image_size=128")
    settings = backbone["plan_layers_all_s1"]
    assert (settings["data.path"], settings["data.image_size"], settings["pretrain.epochs"]) == ("photos", 128, 0)
    assert settings["finetune_fc.trainable"] == ["last_block", "fc1", "output"]
    assert expand(PLANS["photos"])["plan_layers_all_s1"]["finetune_fc.trainable"] == ["conv2", "fc1", "fc2", "output"]


def test_an_experiment_waits_for_the_first_with_a_training_that_it_shares(expand, monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = {"a": {}, "b": {"finetune_fc.epochs": 3}, "c": {"pretrain.epochs": 0}, "d": {"finetune_fc.epochs": 3}}
    sizes = {n: {"data.target_per_class": n} for n in (20, 30)}
    study = MNIST | {"runs": runs | MNIST["runs"], "images_per_class": sizes, "seeds": [1]}
    waits_for, first_pretrainings = experiments.find_dependencies(expand(study))
    assert waits_for["plan_a_20_s1"] == waits_for["plan_c_20_s1"] == set()
    assert waits_for["plan_b_20_s1"] == {"plan_a_20_s1"}  # pretrain, finetune_output
    assert waits_for["plan_d_20_s1"] == {"plan_a_20_s1", "plan_b_20_s1"}  # and finetune_fc
    assert waits_for["plan_a_30_s1"] == {"plan_a_20_s1"}  # the same source images
    assert waits_for["plan_c_30_s1"] == {"plan_c_20_s1"}
    assert first_pretrainings == {"plan_a_20_s1", "plan_c_20_s1"}


METRICS = json.dumps({stage: {"test_accuracy": 0.5} for stage in ("pretrain", "finetune_output", "finetune_fc")})
DETAILS = METRICS.replace('"test_accuracy": 0.5', '"validation_accuracy": null, "train_seconds": 1.0')
BASE, WANTED = Base(".", "", "0" * 40, "a", "a@example.org", cache="cache"), {"a_run": Settings().by_key()}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("reports/metrics.json", METRICS.replace("0.5", "99", 1), "pretrain.test_accuracy: was 99, expected"),
        ("params.yaml", "a: &x 1\nb: *x", "params.yaml: no valid YAML in commit 123: line 2: an alias"),
        ("params.yaml", "text", "params.yaml: no valid YAML"),
        ("params.yaml", "seed: 2", "params.yaml has other settings"),
    ],
)
def test_a_damaged_experiment_is_refused_by_its_name(file, content, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    files = {"params.yaml": yaml.safe_dump(Settings().model_dump())}
    files |= {"reports/metrics.json": METRICS, "reports/details.json": DETAILS}
    git = {f"123:./{name}": name for name in files}  # all other commands list the experiments
    monkeypatch.setattr(repository, "_git", lambda *words, hint="": files.get(git.get(words[-1]), "a_run 123"))
    assert repository.completed_experiments(BASE, WANTED)["a_run"].metrics["pretrain"]["test_accuracy"] == 0.5
    files[file] = content
    with pytest.raises(UserError, match=f"a_run: .*{message}.*dvc exp remove a_run"):
        repository.completed_experiments(BASE, WANTED)


@pytest.mark.parametrize("status", ["done", "of another version"])
def test_a_run_without_an_experiment_is_named_as_failed(status, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(ROOT / "dvc.yaml", "dvc.yaml")
    FOLDER.mkdir(parents=True)
    monkeypatch.setattr(runner, "completed_experiments", lambda base, wanted: {})
    monkeypatch.setattr(runner.worker, "run_experiment", lambda *arguments: Outcome(status, "why"))
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as client:
        for deadline, reason in ((0, "none was started"), (float("inf"), "a_run: ")):
            with pytest.raises(UserError, match=f"no experiment succeeded: {reason}"):
                runner.Study(client, BASE, WANTED, False, deadline).run()


def test_fewer_workers_than_one_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["studies", "studies/mnist.yaml", "--workers", "-3"])
    with pytest.raises(SystemExit, match="error: --workers: was -3, expected 1 or more"):
        __main__.main()
