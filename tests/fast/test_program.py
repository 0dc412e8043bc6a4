"""How a program starts and ends: whose code it runs, where and as whom, and one line for each problem."""

import getpass
import subprocess
import sys
from pathlib import Path

import pytest

from stages.shared.errors import SettingError, UserError, one_line
from stages.shared.inputs import refuse_untracked
from stages.shared.program import _how_to_undo
from stages.shared.startup import start


@pytest.fixture
def refusal(tmp_path, monkeypatch):
    """Start a program, as `python -m` or by its path, in a folder of that name; return the line with which it ends."""

    def refusal(name: str, argument: str = "-m") -> str:
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.setattr(sys, "argv", [argument])
        with pytest.raises(SystemExit, match=r"^error: [^\n]+$") as end:
            start()
        return str(end.value)

    return refusal


@pytest.mark.parametrize(("folder", "argument"), [("clone", "-m"), ("elsewhere", "../clone/predict.py")])
def test_code_of_another_clone_is_refused_as_pythonsafepath_would_run_it(tmp_path, refusal, folder, argument):
    (tmp_path / "clone/stages").mkdir(parents=True)
    assert "PYTHONSAFEPATH" in refusal(folder, argument)


@pytest.mark.parametrize("name", ["a{b", "a}", "a?", "a#b", "a%(b)s", "a\nb", "a\tb"])
def test_folder_in_which_dvc_fails_is_refused(refusal, name):
    assert "DVC fails in a folder with " in refusal(name)


@pytest.mark.parametrize("root", [".", "sub"])
def test_experiment_that_dvc_would_lose_is_refused(tmp_path, refusal, monkeypatch, root):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/shallow").touch()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / root))
    assert "`git fetch --unshallow`" in refusal("copy of --temp")


@pytest.mark.parametrize(("owner", "name", "error"), [(Path, "home", RuntimeError), (getpass, "getuser", KeyError)])
def test_user_without_home_folder_or_name_is_told_what_to_set(refusal, monkeypatch, owner, name, error):
    def fail():
        raise error

    monkeypatch.setattr(owner, name, fail)
    assert "`export HOME=FOLDER LOGNAME=NAME`" in refusal("José, 100% [fine] & ordinary")


def test_clone_of_another_user_is_refused_with_the_command_that_trusts_it(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(UserError, match=r"^photos: Git says: [^\n]* git config --global --add safe\.directory [^\n]*$"):
        refuse_untracked(Path("photos"))


@pytest.mark.parametrize(("root", "undone"), [(".", True), ("..", False)])
def test_command_that_restores_settings_is_named_but_in_a_temporary_copy(tmp_path, monkeypatch, root, undone):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").touch()
    monkeypatch.setenv("DVC_ROOT", str(Path(tmp_path, root).resolve()))
    assert ("git checkout params.yaml" in _how_to_undo(SettingError("seed", "x", "a number"))) == undone


def test_problem_without_words_has_a_name():
    assert [one_line(problem) for problem in (KeyError(), ValueError("\n"))] == ["KeyError", "ValueError"]
    assert one_line(" ") == "no reason given"
