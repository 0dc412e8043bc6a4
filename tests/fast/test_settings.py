"""Settings: YAML is read as DVC reads it, and what is invalid is refused in one line before any work."""

import os
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from repository import ROOT
from stages.settings import PARAMS, Settings, leaves, load
from stages.shared.errors import MAX_LINE, SettingError, UserError
from stages.shared.yaml_files import MAX_BYTES

# A section of the user's own is a further stage; its settings are tested, too.
GOOD = dict(leaves(Settings().model_dump() | {"finetune_further": Settings().finetune_fc.model_dump()}))
pytestmark = pytest.mark.usefixtures("workspace")


def dump(by_key: dict[str, Any]) -> str:
    """Write settings, given by their dotted keys, as YAML."""
    sections: dict[str, dict] = {"": {}}
    for key, value in by_key.items():
        section, _, leaf = key.rpartition(".")
        sections.setdefault(section, {})[leaf] = value
    return yaml.safe_dump(sections.pop("") | sections)


def refusal(text: str, kind: type[UserError] = SettingError) -> str:
    """Return the one-line error for a settings file, without the file's name."""
    with pytest.raises(kind, match=r"^params\.yaml: ") as error:
        PARAMS.write_text(text, encoding="latin-1")
        load()
    assert str(error.value).isprintable()
    assert len(str(error.value)) <= MAX_LINE + 1
    return str(error.value).removeprefix("params.yaml: ")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("pretrain.learning_rate", "1e-05", 1e-5),  # as `dvc exp run -S` writes a small number
        ("data.target_classes", "[yes, no, on, OFF, 1:30]", ["yes", "no", "on", "OFF", "1:30"]),
        ("data.target_classes", "[010, 0x1F, 0o17, 1_000, '7']", [10, 31, 15, 1000, "7"]),
    ],
)
def test_yaml_is_read_as_version_1_2_as_dvc_writes_it(key, text, value):
    PARAMS.write_text(dump(GOOD | {key: "HERE"}).replace("HERE", text))
    assert load().by_key()[key] == value


@pytest.mark.parametrize(
    ("key", "text", "problem"),
    [
        ("seed", "-1", "was -1, expected greater than or equal to 0"),
        ("seed", "[0" + 9999 * ", 0" + "]", "was [0, 0, 0"),
        ("model.rescale", "yes", "was 'yes', expected a valid boolean"),
        ("finetune_further.epochs", "0", "was 0, expected greater than or equal to 1"),
        ("finetune_further.optimizer", "adma", "was 'adma', expected 'rmsprop', 'adam', 'adamw' or 'sgd'"),
    ],
)
def test_wrong_type_or_range_is_refused_with_value_and_expected_values(key, text, problem):
    assert refusal(dump(GOOD | {key: "HERE"}).replace("HERE", text)).startswith(f"{key}: {problem}")


def test_missing_misspelt_and_unknown_settings_are_refused():
    for key, value in GOOD.items():
        others = {other: GOOD[other] for other in GOOD if other != key}
        assert refusal(dump(others)).startswith(f"{key}: was missing, expected a value; ")
        assert f"{key}x: was an unknown key, expected " in refusal(dump(others | {f"{key}x": value}))
    expected = f"expected {', '.join(Settings.model_fields)} or a finetune_… section"
    assert refusal(dump(GOOD | {"augmentation.flip": True})) == f"augmentation: was an unknown key, {expected}"
    for unprintable in ("x\n\x1b[31m", "finetune_x\n\x1b[31m", "model.x\n\x1b[31m"):
        assert refusal(dump(GOOD | {unprintable: 1})).startswith(unprintable.split("\n")[0])


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"finetune_fc.trainable": ["fc9"]}, "finetune_fc.trainable: was ['fc9'], expected some of ['conv1', "),
        ({"finetune_fc.trainable": ["fc2"], "finetune_fc.head": "reset"}, "finetune_fc.trainable: was ['fc2'], "),
        ({"data.target_classes": [5, 6], "finetune_output.head": "keep"}, "finetune_output.head: was 'keep', "),
        ({"precision": "mixed_bfloat16"}, "precision: was 'mixed_bfloat16', expected 'float32', or model.rescale=true"),
        ({"model.weights": "x.h5"}, "model.weights: was 'x.h5', expected 'data/raw/random.yaml', or a model.backbone"),
        ({"pretrain.patience": 3}, "pretrain.patience: was 3, expected null, or data.validation_fraction=0.1: test"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values, problem):
    assert refusal(dump(GOOD | values)).startswith(problem)


def test_file_without_settings_is_refused():
    for content in ("[1", "a: !!python/object/apply:os.getcwd []", "[" * 1500, "a: \xff"):
        assert refusal(content, UserError).startswith("no valid YAML: ")
    assert refusal("a: &a 1\nb: *a", UserError) == "no valid YAML: line 2: an alias (*), expected plain values"
    for content in ("", "- seed\n", "7"):
        assert refusal(content).startswith("the file: was ")
    assert refusal("#" * MAX_BYTES + "\n", UserError).startswith(f"{MAX_BYTES + 1} bytes, expected the settings")
    PARAMS.unlink()
    PARAMS.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"^params\.yaml: not a regular file"):
        load()


def started(*arguments: str) -> tuple[int, str, str]:
    """Start Python in the test's folder; returns exit code, output and errors."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("content", "arguments", "line"),
    [
        ("", ["-m", "stages.prepare"], "params.yaml: .*; to restore .*: touch params.yaml && git checkout params.yaml"),
        (None, ["-m", "stages.prepare"], "params.yaml: No such file .*; run in the repository's folder"),
        (None, [f"{ROOT}/stages/prepare.py"], "started by its path; run `python -m stages.prepare` in the .* folder"),
        (None, ["-S", "-m", "stages.prepare"], ".* lacks .*tensorflow.*: run `make setup` once, .*"),  # no packages
    ],
)
def test_program_ends_with_one_line_that_says_what_to_do(content, arguments, line):
    PARAMS.unlink() if content is None else PARAMS.write_text(content)
    code, output, errors = started(*arguments)
    assert (code, output) == (1, "")
    assert re.fullmatch(f"error: {line}\n", errors)


def test_importing_the_package_never_ends_a_program_and_light_stages_do_not_import_tensorflow():
    assert started("-S", "-c", "import stages; print('goes on')") == (0, "goes on\n", "")
    heavy = "import sys, stages.prepare, stages.report; print({'tensorflow', 'keras'} & set(sys.modules))"
    assert started("-c", heavy)[1] == "set()\n"
