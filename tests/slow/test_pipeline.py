"""The pipeline through real `dvc` commands in a temporary repository, as a user would type them."""

import json
import multiprocessing
import os
import sys

import pytest
import yaml

from repository import ROOT, Repository, default_params, stages_run, tiny_params

STAGES = ["prepare", "pretrain", "finetune_output", "finetune_fc", "report"]
OUTPUTS = ("data/prepared/*.npz", "models/*.keras", "reports/history/*", "reports/predictions/*", "reports/record/*")
OUTPUTS += ("reports/figures/*",)


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A repository whose pipeline has run once and is committed with its results."""
    repo = Repository(tmp_path_factory.mktemp("pipeline"))
    assert stages_run(repo.dvc("repro")) == STAGES
    repo.commit("First run")
    return repo


@pytest.fixture(autouse=True)
def as_committed(repo):
    """Every test starts from the committed first run."""
    repo.run("git", "reset", "-q", "--hard")
    repo.run("git", "clean", "-q", "-d", "--force", "reports")
    repo.dvc("checkout", "--force")


def metrics(repo):
    return json.loads((repo.path / "reports/metrics.json").read_text())


def append(repo, file, text):
    path = repo.path / file
    path.write_text(path.read_text() + text)


def test_writes_what_the_readme_names(repo):
    assert set(repo.bytes_of("data/prepared/*", "models/*")) == {
        *(f"data/prepared/{half}.npz" for half in ("source", "target")),
        *(f"models/{stage}.keras" for stage in STAGES[1:4]),
    }
    assert list(metrics(repo)) == STAGES[1:4]
    assert len((repo.path / "reports/summary.csv").read_text().splitlines()) == 4
    assert (repo.path / "reports/report.md").read_text().startswith("# Transfer learning on tiny\n")


def test_git_shows_the_results_and_dvc_keeps_the_rest(repo):
    tracked = set(repo.run("git", "ls-files", "reports", "models", "data").stdout.split())
    assert {"reports/metrics.json", "reports/summary.csv", "reports/report.md"} < tracked
    assert {f"reports/history/{stage}.csv" for stage in STAGES[1:4]} < tracked
    assert not [path for path in tracked if path.endswith((".keras",)) or "prepared/s" in path]
    assert repo.run("git", "status", "--short").stdout == ""


def test_nothing_to_do_the_second_time(repo):
    output = repo.dvc("repro")
    assert stages_run(output) == []
    assert "Data and pipelines are up to date." in output


def test_a_change_to_the_report_runs_the_report_alone(repo):
    append(repo, "stages/report.py", "# changed\n")
    assert stages_run(repo.dvc("repro")) == ["report"]


def test_a_change_that_leaves_the_output_equal_stops_there(repo):
    append(repo, "stages/prepare.py", "# changed\n")
    assert stages_run(repo.dvc("repro")) == ["prepare"]


@pytest.mark.parametrize("where", ["--temp", "--queue"])
def test_a_forced_rerun_elsewhere_writes_the_same_bytes(repo, where):
    before = repo.bytes_of(*OUTPUTS)
    output = repo.dvc("exp", "run", where, "--force", "-n", f"elsewhere{where}")
    if where == "--queue":
        repo.dvc("queue", "start")
        output = repo.dvc("queue", "logs", "--follow", f"elsewhere{where}")
        repo.run("sh", "-c", "for i in $(seq 60); do dvc queue status | grep -q Success && exit; sleep 1; done; exit 1")
    assert stages_run(output) == STAGES
    assert f"elsewhere{where}" in repo.dvc("exp", "show", "--csv")
    repo.dvc("exp", "apply", f"elsewhere{where}")
    assert repo.bytes_of(*OUTPUTS) == before


def test_dag_names_the_stages(repo):
    dag = repo.dvc("dag", "--mermaid")
    assert all(f'["{stage}"]' in dag for stage in STAGES)


def test_models_are_artifacts(repo):
    declared = yaml.safe_load((repo.path / "dvc.yaml").read_text())["artifacts"]
    assert {entry["path"] for entry in declared.values()} == set(repo.bytes_of("models/*.keras"))


def renamed(entries):
    return json.loads(json.dumps(entries).replace("finetune_fc", "finetune_all"))


def test_a_third_variant_needs_no_python(repo):
    """As docs/settings.md describes it: a section in params.yaml, a stage in dvc.yaml, its name and files in report."""
    params = tiny_params()
    params["finetune_all"] = params["finetune_fc"] | {"trainable": ["conv1", "conv2", "fc1", "fc2", "output"]}
    (repo.path / "params.yaml").write_text(yaml.safe_dump(params))
    pipeline = yaml.safe_load((repo.path / "dvc.yaml").read_text())
    pipeline["stages"]["finetune_all"] = renamed(pipeline["stages"]["finetune_fc"])
    report = pipeline["stages"]["report"]
    report["cmd"] += " finetune_all"
    report["deps"] += renamed([dep for dep in report["deps"] if "finetune_fc" in dep])
    (repo.path / "dvc.yaml").write_text(yaml.safe_dump(pipeline))
    assert sorted(stages_run(repo.dvc("repro"))) == ["finetune_all", "report"]
    assert metrics(repo)["finetune_all"]["trainable_parameters"] == metrics(repo)["pretrain"]["trainable_parameters"]
    assert (repo.path / "reports/figures/confusion_finetune_all.png").exists()


def test_a_bad_setting_stops_before_any_training(repo):
    output = repo.dvc("exp", "run", "-S", "finetune_fc.epochs=many", "-S", "pretrain.epochs=3", check=False)
    assert "error: params.yaml: finetune_fc.epochs: was 'many', expected a valid integer" in output
    assert "Epoch 1/" not in output
    assert "Traceback" not in output


def test_an_unreachable_dataset_says_what_to_do(repo):
    params = tiny_params()
    params["data"]["path"] = "data/raw/cifar10.yaml"
    (repo.path / "params.yaml").write_text(yaml.safe_dump(params))
    pointer = yaml.safe_load((ROOT / "data/raw/cifar10.yaml").read_text())
    pointer["urls"] = ["http://127.0.0.1:9/cifar-10-python.tar.gz"]
    (repo.path / "data/raw/cifar10.yaml").write_text(yaml.safe_dump(pointer))
    output = repo.dvc("repro", check=False)
    assert "CIFAR-10 cannot be downloaded" in output
    assert "data/raw/cifar-10-python.tar.gz" in output
    assert "dvc exp run -S data.path=data/raw/digits.npz" in output
    assert "Traceback" not in output


def first_core_alone():
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def load_one_core(stop):
    first_core_alone()
    while not stop.is_set():
        pass


def test_surroundings_change_no_byte(repo, tmp_path):
    """Another path, hash seed, locale, time zone and umask, fewer cores than threads, and those busy."""
    path = tmp_path / "ein Ordner für Prüfungen, 二"
    path.mkdir()
    other = Repository(path)
    other.environment |= {"PYTHONHASHSEED": "271828", "LC_ALL": "C", "TZ": "Asia/Kathmandu"}
    stop = multiprocessing.get_context("spawn").Event()
    load = multiprocessing.get_context("spawn").Process(target=load_one_core, args=(stop,))

    def surroundings():
        os.umask(0o077)
        first_core_alone()

    load.start()
    try:
        output = other.run(sys.executable, "-m", "dvc", "repro", preexec_fn=surroundings).stdout
    finally:
        stop.set()
        load.join()
    assert stages_run(output) == STAGES
    assert other.bytes_of(*OUTPUTS) == repo.bytes_of(*OUTPUTS)


def test_a_second_clone_pulls_and_trains_nothing(repo, tmp_path):
    repo.run("git", "branch", "-f", "before")
    repo.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    repo.commit("A remote")
    repo.dvc("push", "--run-cache")
    clone = repo.clone(tmp_path / "clone")
    repo.run("git", "reset", "-q", "--hard", "before")
    clone.dvc("pull", "--run-cache")
    assert stages_run(clone.dvc("repro")) == []
    assert clone.bytes_of(*OUTPUTS) == repo.bytes_of(*OUTPUTS)


def test_finds_what_it_has_computed_before(repo):
    """DVC's run cache: the same inputs are not computed again, even where dvc.lock has forgotten them."""
    before = repo.bytes_of(*OUTPUTS)
    (repo.path / "dvc.lock").unlink()
    assert stages_run(repo.dvc("repro")) == ["report"]
    assert repo.bytes_of(*OUTPUTS) == before


def test_make_run_uses_the_digits_and_says_so_each_time_if_cifar10_cannot_be_downloaded(tmp_path):
    """Without a Git identity, and with standard input closed."""
    params = tiny_params()
    params["data"] = default_params()["data"] | {"source_per_class": 10, "target_per_class": 10}
    for stage in ("pretrain", "finetune_output", "finetune_fc"):
        params[stage] |= {"epochs": 1, "batch_size": 64}
    path = tmp_path / "clone"
    path.mkdir()
    repo = Repository(path, params)
    repo.run("git", "config", "--unset", "user.name")
    repo.run("git", "config", "--unset", "user.email")
    repo.environment |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    (path / ".venv").symlink_to(sys.prefix)
    output = repo.run("sh", "-c", "exec make -o .venv/ready run <&-").stdout
    assert "CIFAR-10 cannot be downloaded" in output
    assert output.count("NOT CIFAR-10") == 2
    assert stages_run(output) == STAGES
    assert (repo.path / "reports/report.md").read_text().startswith("# Transfer learning on digits")
    repo.run("git", "-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "-qam", "What there is")
    again = repo.run("sh", "-c", "exec make -o .venv/ready run <&-").stdout
    assert again.count("NOT CIFAR-10") == 2
    assert stages_run(again) == []
    back = ".venv/bin/dvc exp run -S data.path=data/raw/cifar10.yaml"
    assert back in again
    assert "CIFAR-10 cannot be downloaded" in repo.run(*back.split(), check=False).stdout  # it did try
