"""Settings: the defaults are the notebook's, and what is wrong is refused in one line before any work."""

import copy
import math
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from typing import Any, get_args

import pytest
import yaml

from counting import counted
from repository import ROOT
from stages.settings import LARGEST_YAML, PARAMS, Recipe, Settings, leaves, load
from stages.shared import inputs
from stages.shared.errors import LONGEST_LINE, UserError

# A further fine-tuning stage has a section that the schema does not name: its settings are tried, too.
GOOD = Settings().model_dump() | {"finetune_further": Settings().finetune_fc.model_dump()}
GONE = object()
pytestmark = pytest.mark.usefixtures("workspace")


def changed(**values: Any) -> dict:
    """The good settings with some changed, added or `GONE`."""
    result = copy.deepcopy(GOOD)
    for key, value in values.items():
        name, _, leaf = key.rpartition(".")
        section = result[name] if name else result
        section[leaf] = value
        if value is GONE:
            del section[leaf]
    return result


def loaded(values: dict | bytes) -> Settings:
    PARAMS.write_bytes(values if isinstance(values, bytes) else yaml.safe_dump(values).encode())
    return load()


def refusal(values: dict | bytes) -> str:
    """The one line that refuses settings, without the file's name."""
    with pytest.raises(UserError, match=r"^params\.yaml: ") as error:
        loaded(values)
    counted["bad parameters refused"] += 1
    assert str(error.value).isprintable()
    return str(error.value).removeprefix("params.yaml: ")


def test_params_yaml_shows_every_setting():
    assert set(Settings().by_key()) <= set(dict(leaves(yaml.safe_load((ROOT / "params.yaml").read_text()))))


def test_no_other_file_keeps_a_list_of_optimizers():
    names = get_args(Recipe.model_fields["optimizer"].annotation)
    for path in {*ROOT.glob("stages/**/*.py"), ROOT / "params.yaml"} - {ROOT / "stages/settings.py"}:
        text = path.read_text().replace(", ".join(names), "")  # help in params.yaml is made from the schema
        assert [line for line in text.splitlines() if len(set(re.findall(r"\w+", line)) & set(names)) > 1] == [], path


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("seed", -1, "greater than or equal to 0"),
        ("data.target_classes", [], "at least 2"),
        ("pretrain.learning_rate", math.inf, "finite"),
        ("finetune_further.epochs", 0, "greater than or equal to 1"),
        ("finetune_further.optimizer", "adma", "'rmsprop'"),
    ],
)
def test_wrong_type_or_range_is_refused(key, value, expected):
    wrong = repr(value[-1] if isinstance(value, list) and value else value)
    assert re.match(rf"{key}(\.1)?: was {re.escape(wrong)}, .*{expected}", refusal(changed(**{key: value})))


def test_missing_misspelt_and_unknown_are_refused():
    for key, value in leaves(GOOD):
        assert re.match(rf"{key}: missing(, expected|; see)", refusal(changed(**{key: GONE})))
        assert f"{key}x: unknown key" in refusal(changed(**{key: GONE, f"{key}x": value}))
    text = refusal(changed(augmentation={"flip": True}))
    assert all(name in text for name in ("augmentation: unknown key, expected", *Settings.model_fields))
    for unprintable in ("x\n\x1b[31m", "finetune_x\n\x1b[31m", "model.x\n\x1b[31m"):
        assert refusal(changed(**{unprintable: 1})).startswith(unprintable.split("\n")[0])


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"finetune_fc.trainable": ["fc9"]}, "finetune_fc.trainable: was ['fc9'], expected some of ['conv1', "),
        ({"model.dense_units": [9]}, "finetune_fc.trainable: was ['fc2', 'output'], expected some of ['conv1', "),
        ({"finetune_fc.trainable": ["fc2"], "finetune_fc.head": "reset"}, "finetune_fc.trainable: was ['fc2'], "),
        ({"data.target_classes": [5, 6, 7]}, "finetune_output.head: was 'keep', expected 'reset', as data.source_cla"),
        (
            {"data.source_classes": "all", "data.target_classes": "all"},
            "finetune_output.head: was 'keep', expected 'reset'",
        ),
        ({"precision": "mixed_bfloat16"}, "precision: was 'mixed_bfloat16', expected 'float32', or model.rescale=true"),
        ({"model.weights": "x.h5"}, "model.weights: was 'x.h5', expected 'data/raw/random.yaml', or a model.backbone"),
        ({"devices": 3}, "pretrain.batch_size: was 64, expected a multiple of devices, 3"),
        ({"pretrain.patience": 3}, "pretrain.patience: was 3, expected null, or data.validation_fraction=0.1: test"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(values, problem):
    assert refusal(changed(**values)).startswith(problem)


def test_what_fits_is_accepted():
    reset = {f"{name}.head": "reset" for name in GOOD if name.startswith("finetune_")}
    fitting = {"precision": "mixed_float16", "model.rescale": True, "devices": 2, "data.target_classes": ["cat", 7]}
    params = loaded(changed(**reset, **fitting, **{"pretrain.epochs": 0, "finetune_further.epochs": 3}))
    assert params.finetune("finetune_further").epochs == 3
    with pytest.raises(UserError, match=r"^params\.yaml: finetune_other: missing, expected [^\n]+$"):
        params.finetune("finetune_other")
    backbone = {"model.backbone": "ConvNeXtTiny", "model.weights": "x.h5", "finetune_fc.trainable": ["backbone"]}
    assert loaded(changed(**backbone, precision="mixed_bfloat16")).model.backbone == "ConvNeXtTiny"
    small = yaml.safe_dump(GOOD).replace("learning_rate: 0.001", "learning_rate: 1e-05")  # as DVC writes it
    assert loaded(small.encode()).pretrain.learning_rate == 1e-5


def test_file_that_holds_no_settings_is_refused():
    for content in (b"[1", b"a: !!python/object/apply:os.getcwd []", b"[" * 5000, b"a: \xff"):
        assert refusal(content).startswith("no valid YAML: ")
    for content in (b"", b"- seed\n", b"7"):
        assert refusal(content).startswith("the file: was ")
    assert re.match(r"\d+ bytes, expected the settings", refusal(b"#" * LARGEST_YAML + b"\n"))
    PARAMS.unlink()
    PARAMS.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"^params\.yaml: not a regular file"):
        load()


def test_aliases_take_no_memory_before_they_are_refused(monkeypatch):
    """Not in the note of a stage's inputs, either, which DVC's stages make at their start."""
    tenfold = ["finetune_0: &a0 {epochs: 1}"]
    tenfold += [f"finetune_{i}: &a{i} {{{', '.join(f'k{k}: *a{i - 1}' for k in range(10))}}}" for i in range(1, 8)]
    PARAMS.write_text("\n".join(tenfold))
    shutil.copy(ROOT / "dvc.yaml", "dvc.yaml")
    monkeypatch.setenv("DVC_STAGE", "report")
    tracemalloc.start()
    try:
        assert inputs._inputs() == {}
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_message_shows_only_some_of_a_large_value():
    tenfold = ["seed: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]"]
    tenfold += [f"s{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 11)]
    assert refusal("\n".join(tenfold).encode()) == "no valid YAML: line 2: an alias (*), expected plain values"
    many = {f"finetune_{i}": 1 for i in range(1000)}
    for values in ({"seed": list(range(9999))}, {"seed": "x" * 9999}, {"data.target_classes": [""] * 999}, many):
        assert len(refusal(changed(**values))) <= LONGEST_LINE + 1


def started(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of Python started in the test's folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["-m", "stages.prepare"], "params.yaml: No such file .*; run in the repository's folder"),
        ([f"{ROOT}/stages/prepare.py"], "started by its path; run `python -m stages.prepare` in the .* folder"),
        (["-S", "-m", "stages.prepare"], ".* lacks .*tensorflow.*: run `make setup` once, .*"),  # -S: no packages
    ],
)
def test_program_ends_with_one_line_that_says_what_to_do(arguments, line):
    if "No such file" in line:
        PARAMS.unlink()
    code, output, errors = started(*arguments)
    assert (code, output) == (1, "")
    assert re.fullmatch(f"error: {line}\n", errors)


def test_importing_the_package_never_ends_a_program_and_light_stages_do_without_tensorflow():
    assert started("-S", "-c", "import stages; print('goes on')") == (0, "goes on\n", "")
    heavy = "import sys, stages.prepare, stages.report; print({'tensorflow', 'keras'} & set(sys.modules))"
    assert started("-c", heavy)[1] == "set()\n"
