"""README's commands, every one and in their order, on the digits: each does what README says, and nothing else."""

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

from counting import counted
from repository import RESULTS, ROOT, Repository, default_params, stages_run, tiny_params
from stages.settings import leaves

FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
BLOCKS = [block for language, block in FENCED if not language]
COMMANDS = [
    line.partition("  #")[0].strip() for block in BLOCKS[1:] for line in block.splitlines() if not line.startswith("#")
]


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A clone after `make run` without a network, a Git identity and standard input; it has a Git remote to push to."""
    folder = tmp_path_factory.mktemp("readme")
    params = tiny_params() | {"data": default_params()["data"]}
    for stage in ("pretrain", "finetune_output", "finetune_fc"):
        params[stage]["epochs"] = 5  # as no command sets it: each is to change something
    (folder / "origin").mkdir()
    origin = Repository(folder / "origin", params)
    origin.run("git", "clone", "-q", "--bare", ".", "../bare.git")
    origin.run("git", "remote", "add", "origin", "../bare.git")
    repo = origin.clone(folder / "clone")
    repo.run("git", "remote", "set-url", "origin", str(folder / "bare.git"))
    repo.environment |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    (repo.path / ".venv").symlink_to(sys.prefix)
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert sorted(stages_run(on_the_digits(repo))) == sorted(stages)
    assert (repo.path / "reports/report.md").read_text().startswith("# Transfer learning on digits")
    repo.run("git", "config", "user.name", "A Reader")
    repo.run("git", "config", "user.email", "reader@example.org")
    return repo


def take_photos(folder: Path) -> None:
    """Some 240 photos of four kinds, of a colour each: sizes, greyscale, alpha, EXIF, one broken, one twice."""
    rng, turned = np.random.default_rng(0), Image.Exif()
    turned[0x0112] = 6
    for i in range(240):
        kind, size = i % 4, tuple(rng.integers(30, 90, 2))
        colour = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (30, 30, 30)][kind]
        photo = Image.fromarray(rng.normal(colour, 30, (*size, 3)).clip(0, 255).astype(np.uint8))
        photo = photo.convert({0: "L", 1: "RGBA"}.get(i % 10, "RGB"))
        path = folder / ["apple", "leaf", "sky", "night"][kind] / f"{i:03}.{'png' if i % 10 < 5 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.save(path, **({"exif": turned} if i % 10 == 7 else {}))
    (folder / "sky/broken.jpg").write_bytes((folder / "sky/006.jpg").read_bytes()[:300])
    shutil.copy(folder / "sky/002.png", folder / "sky/copy.png")
    (folder / "sky/.DS_Store").touch()


def on_the_digits(repo: Repository) -> str:
    """What `make run` prints, which says twice that these are the digits."""
    output = repo.run("sh", "-c", "exec make -o .venv/ready run <&-").stdout
    assert output.count("NOT CIFAR-10") == 2
    return output


def asked_for(command: str) -> set[str]:
    """The settings that a `dvc exp run` names, those of a recipe included."""
    recipe = (ROOT / "docs/recipes/fast.txt").read_text()
    words = shlex.split(command.replace("$(cat docs/recipes/fast.txt)", recipe))
    return {words[i + 1].partition("=")[0] for i, word in enumerate(words) if word == "-S"}


def test_every_command_of_the_readme(repo, tmp_path):
    baseline = dict(leaves(yaml.safe_load((repo.path / "params.yaml").read_text())))
    for command in COMMANDS:
        if command == "dvc add photos":
            take_photos(repo.path / "photos")
        ready = command.replace("make ", "make -o .venv/ready ")
        output = repo.run("bash", "-c", ready, check=not command.startswith("python predict.py")).stdout
        counted["commands of the README, each run"] += 1
        if command.startswith("dvc exp run"):
            name = shlex.split(command)[shlex.split(command).index("-n") + 1]
            changed = json.loads(repo.dvc("params", "diff", "HEAD", name, "--json"))["params.yaml"]
            assert set(changed) == asked_for(command), command
            assert all(str(change["old"]) == str(baseline[key]) for key, change in changed.items()), command
            assert repo.run("git", "status", "--short").stdout == "", command
            if name == "three-epochs":
                assert stages_run(output) == ["finetune_fc", "report"]
        if command.startswith("dvc metrics diff"):
            assert "finetune_fc.test_accuracy" in output
            assert "pretrain" not in output
        if command.startswith("dvc plots diff"):
            assert "failed" not in output.lower()
            page = (repo.path / "dvc_plots/index.html").read_text()
            assert all(text in page for text in ("Confusion of finetune_fc", "Loss while training", "curves.png"))
        if command.startswith("dvc exp show"):
            assert "three-epochs" in output
            assert "finetune_fc.test_accuracy" in output
        if command.startswith("python predict.py"):
            rows = [line.split() for line in output.splitlines() if line.startswith("photos/")]
            assert len(rows) == 241
            assert {row[1] for row in rows} <= {"apple", "leaf", "night", "sky"}
            assert "1 of 242 pictures cannot be read:\n  photos/sky/broken.jpg: " in output
            assert (repo.path / "predictions.html").read_text().count("<img") == 241
            (python,) = [block for language, block in FENCED if language == "python"]
            names = repo.run(sys.executable, "-c", f"{python}print(names)").stdout
            assert names == "['apple', 'leaf', 'night', 'sky']\n"
            report = (repo.path / "reports/report.md").read_text()
            for note in ("241 pictures of", "exact duplicates: 1", "greyscale: ", "turned as EXIF says: ", "broken"):
                assert note in report
        if command == "dvc exp apply random-features":
            assert yaml.safe_load((repo.path / "params.yaml").read_text())["pretrain"]["epochs"] == 0
            in_a_copy = repo.bytes_of(*RESULTS)  # which is where --temp runs
            assert stages_run(repo.dvc("repro", "--force", "--single-item", "finetune_fc")) == ["finetune_fc"]
            assert repo.bytes_of(*RESULTS) == in_a_copy
        if command.startswith("touch params.yaml"):
            assert dict(leaves(yaml.safe_load((repo.path / "params.yaml").read_text()))) == baseline
            assert repo.run("git", "status", "--short").stdout == ""
            assert "up to date" in repo.dvc("status")
    colleague = repo.clone(tmp_path / "colleague")
    colleague.environment["HOME"] = repo.environment["HOME"]  # where README's remote is
    colleague.dvc("pull")
    assert stages_run(colleague.dvc("repro")) == []
    assert colleague.bytes_of(*RESULTS) == repo.bytes_of(*RESULTS)
    colleague.run("git", "remote", "set-url", "origin", repo.run("git", "remote", "get-url", "origin").stdout.strip())
    colleague.dvc("exp", "pull", "origin", "shared")
    colleague.dvc("exp", "apply", "shared")
    assert stages_run(colleague.dvc("repro")) == []
    assert "finetune_fc.epochs" in colleague.dvc("params", "diff")


def test_make_run_stays_on_the_digits_and_one_command_tries_cifar10_again(repo):
    output = on_the_digits(repo)
    assert stages_run(output) == []
    back = ".venv/bin/dvc exp run -S data.path=data/raw/cifar10.yaml"
    assert back in output
    assert "CIFAR-10 cannot be downloaded" in repo.run(*back.split(), check=False).stdout  # it did try


@pytest.mark.parametrize("changes", [["seed=-5"], ["data.target_classes=[]"], ["pretrain.epochs=3", "devices=many"]])
def test_a_refused_setting_is_undone_by_the_command_that_the_message_names(repo, changes):
    repo.run("git", "reset", "-q", "--hard")
    before = (repo.path / "params.yaml").read_bytes()
    output = repo.dvc("exp", "run", *(f"-S{change}" for change in changes), check=False)
    assert "Epoch 1/" not in output
    assert "Traceback" not in output
    assert (repo.path / "params.yaml").read_bytes() != before
    back = re.search(r"^error: params\.yaml: .*; to go back to what is committed: (.*)$", output, re.M)
    repo.run("bash", "-c", back[1])
    assert (repo.path / "params.yaml").read_bytes() == before
