"""Every command of README, and of settings.md's experiments, on MNIST: each does what the page says, nothing else."""

import itertools
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from repository import RESULTS, ROOT, STAGES, Repository, stages_run, tiny_params
from stages.settings import Data, leaves


def commands(text: str) -> list[str]:
    """List the commands of a page, or a part of one, without comments."""
    lines = "".join(re.findall(r"^```\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)).splitlines()
    return [line.partition("  #")[0].strip() for line in lines if not line.startswith("#")]


README = commands((ROOT / "README.md").read_text().partition("Now open")[2])
PHOTOS = next(i for i, command in enumerate(README) if command.startswith("dvc add photos"))
EXPERIMENTS, SHARE = map(commands, re.split("## (?:Share|Image)", (ROOT / "docs/settings.md").read_text())[:2])
COMMANDS = [*README[:PHOTOS], *EXPERIMENTS, *README[PHOTOS:], EXPERIMENTS[-1], *SHARE]


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A repository after `make run` without network, Git identity and standard input; it has a Git remote."""
    path = tmp_path_factory.mktemp("readme") / "repository"
    params = tiny_params() | {"data": Data().model_dump()}
    for stage in STAGES.keys() - {"prepare", "report"}:
        params[stage]["epochs"] = 5  # other than in any command: each is to change something
    repo = Repository(path, params)
    repo.run("git", "clone", "-q", "--bare", ".", "../bare.git")
    repo.run("git", "remote", "add", "origin", str(path.with_name("bare.git")))
    repo.run("git", "push", "-q", "-u", "origin", "main")
    (path / ".venv").symlink_to(sys.prefix)
    repo.environment |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    repo.environment["GIT_CONFIG_GLOBAL"] = "/dev/null"
    assert sorted(stages_run(make_run(repo))) == sorted(STAGES)
    del repo.environment["GIT_CONFIG_GLOBAL"]
    assert (path / "reports/report.md").read_text().startswith("# Transfer learning on mnist")
    return repo


def make_run(repo: Repository) -> str:
    """Run `make run`, which says twice that the images are of MNIST."""
    output = repo.run("sh", "-c", "exec make -o .venv/ready run <&-")
    assert output.count("NOT CIFAR-10") == 2
    return output


def settings(repo: Repository) -> dict:
    return dict(leaves(yaml.safe_load((repo.path / "params.yaml").read_text())))


def make_photos(folder: Path) -> None:
    """Draw 90 photos of three colours and different sizes."""
    rng = np.random.default_rng(0)
    for i in range(90):
        path = folder / ["apple", "leaf", "sky"][i % 3] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = np.eye(3)[i % 3] * 150 + 50
        pixels = rng.normal(colour, 30, (*rng.integers(30, 90, 2), 3)).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(path)


def check_experiment(repo: Repository, command: str, output: str) -> None:
    """The experiment changed the settings that its command names, those of a recipe included, and no file here."""
    words = shlex.split(re.sub(r"\$\(cat (.*?)\)", lambda found: (ROOT / found[1]).read_text(), command))
    name = words[words.index("-n") + 1]
    named = {setting.partition("=")[0] for option, setting in itertools.pairwise(words) if option == "-S"}
    changed = json.loads(repo.dvc("params", "diff", "HEAD", name, "--json"))["params.yaml"]
    assert set(changed) == named, command
    assert repo.run("git", "status", "--short") == "", command
    if name == "three-epochs":
        assert stages_run(output) == ["finetune_fc", "report"]
        assert "pretrain" not in repo.dvc("metrics", "diff", "HEAD", name)


def check_experiment_in_a_copy(repo: Repository, command: str, output: str) -> None:
    """The experiment, run in a copy by `--temp`, has the bytes of a run here."""
    assert settings(repo)["pretrain.epochs"] == 1
    in_a_copy = repo.bytes_of(*RESULTS)
    assert stages_run(repo.dvc("repro", "--force", "--single-item", "finetune_fc")) == ["finetune_fc"]
    assert repo.bytes_of(*RESULTS) == in_a_copy


def check_table(repo: Repository, command: str, output: str) -> None:
    """The table has each experiment's accuracies, gains and changed settings, in 100 columns."""
    (row,) = [line for line in output.splitlines() if line.startswith("  three-epochs ")]
    assert re.search(r"three-epochs +[\d.]+ +[\d.]+ \([+-][\d.]+\) +[\d.]+ \([+-][\d.]+\)  finetune_fc.epochs=3$", row)
    assert all(len(line) <= 100 for line in output.splitlines())


def check_predictions(repo: Repository, command: str, output: str) -> None:
    rows = [line.split() for line in output.splitlines() if line.startswith("new_photos/")]
    assert len(rows) == 90
    assert {row[1] for row in rows} <= {"apple", "leaf", "sky"}
    assert "1 of 91 pictures cannot be read:\n  new_photos/sky/broken.png: " in output
    assert (repo.path / "predictions.html").read_text().count("<img") == 90
    page = (ROOT / "docs/photos.md").read_text()
    (python,) = re.findall(r"^```python\n(import json.*?)^```$", page, re.M | re.DOTALL)
    assert repo.run(sys.executable, "-c", f"{python}print(names)") == "['apple', 'leaf', 'sky']\n"
    assert "90 pictures of" in (repo.path / "reports/report.md").read_text()
    shutil.rmtree(repo.path / "new_photos")


def check_export(repo: Repository, command: str, output: str) -> None:
    """Files are written; of this tiny network the one in 8 bits may be too inaccurate, and is named."""
    assert "written: models/export/finetune_fc\n" in output
    assert "error: " not in output.replace("error: models/finetune_fc.keras: test accuracy of model_int8", "")


def check_restored(repo: Repository, command: str, output: str) -> None:
    assert settings(repo)["pretrain.epochs"] == settings(repo)["finetune_fc.epochs"] == 5
    assert repo.run("git", "status", "--short") == ""
    assert "up to date" in repo.dvc("status")


CHECKS = {
    "dvc exp run": check_experiment, "dvc exp apply one-epoch": check_experiment_in_a_copy,
    "make experiments": check_table, "make export": check_export,
    "python predict.py": check_predictions, "touch params.yaml": check_restored,
}  # fmt: skip


def test_every_command_of_the_readme_and_those_of_a_colleague(repo, tmp_path):
    checked = set()
    for command in COMMANDS:
        if command.startswith("dvc add photos"):
            make_photos(repo.path / "photos")
        if command.startswith("python predict.py"):
            shutil.copytree(repo.path / "photos", new := repo.path / "new_photos")
            (new / "sky/broken.png").write_bytes((new / "sky/02.png").read_bytes()[:300])
        ready = command.replace("make ", "make -o .venv/ready ")
        output = repo.run("bash", "-c", ready, check=not command.startswith(("python predict.py", "make export")))
        for start in filter(command.startswith, CHECKS):
            CHECKS[start](repo, command, output)
            checked.add(start)
    assert checked == set(CHECKS)
    colleague = repo.clone(tmp_path / "colleague")
    colleague.environment["HOME"] = repo.environment["HOME"]  # the home of README's remote
    colleague.dvc("pull")
    assert stages_run(colleague.dvc("repro")) == []
    assert colleague.bytes_of(*RESULTS) == repo.bytes_of(*RESULTS)
    colleague.run("git", "remote", "set-url", "origin", str(repo.path.with_name("bare.git")))
    colleague.dvc("exp", "pull", "origin", "shared")
    colleague.dvc("exp", "apply", "shared")
    assert stages_run(colleague.dvc("repro")) == []
    assert "finetune_fc.epochs" in colleague.dvc("params", "diff")


def test_make_run_stays_on_mnist_until_its_command_tries_cifar10_again(repo):
    output = make_run(repo)
    assert stages_run(output) == []
    back = ".venv/bin/dvc exp run -S data.path=data/raw/cifar10.yaml"
    assert back in output
    assert "CIFAR-10 cannot be downloaded" in repo.run(*back.split(), check=False)


@pytest.mark.parametrize("changes", [["seed=-5"], ["data.target_classes=[]"], ["pretrain.epochs=3", "threads=many"]])
def test_a_refused_setting_is_undone_by_the_command_that_the_message_names(repo, changes):
    repo.run("git", "reset", "-q", "--hard")
    before = (repo.path / "params.yaml").read_bytes()
    output = repo.dvc("exp", "run", *(f"-S{change}" for change in changes), check=False)
    assert (repo.path / "params.yaml").read_bytes() != before
    restore = re.search(r"^error: params\.yaml: .*; to restore the committed settings: (.*)$", output, re.M)
    repo.run("bash", "-c", restore[1])
    assert (repo.path / "params.yaml").read_bytes() == before
