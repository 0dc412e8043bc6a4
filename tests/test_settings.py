"""Every setting of params.yaml, refused when it is wrong: the cases are made from the schema itself."""

import copy
import math
import os
import re
import subprocess
import sys
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from counting import counted
from repository import ROOT, default_params
from stages import settings
from stages.settings import Finetune, Settings, UserError

COMMITTED = default_params()
# A further fine-tuning stage has a section that the schema does not name: its settings are tried too.
GOOD = COMMITTED | {"finetune_further": dict(COMMITTED["finetune_fc"])}
SECTIONS = [name for name, value in COMMITTED.items() if isinstance(value, dict)]

# Values of every type; for each setting, those that are none of its type.
PROBES = [None, True, 0, 7, 1.5, 2.0, math.nan, math.inf, -math.inf, "", "word", "3", "nan", "inf", "0,1"]
PROBES += [[], [1], ["word"], {}, {"a": 1}]
TYPE_NAMES = {int: "integer", float: "number", bool: "boolean", str: "string"}


def fields(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Every setting of a schema by its dotted key."""
    found = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= fields(field.annotation, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = field
    return found


LEAVES = fields(Settings) | fields(Finetune, "finetune_further.")


def parts(annotation: Any) -> tuple[Any, list]:
    """A type without its annotations, and the constraints they hold."""
    if get_origin(annotation) is not Annotated:
        return annotation, []
    bare, *notes = get_args(annotation)
    return bare, [constraint for note in notes for constraint in note.metadata]


def options(annotation: Any) -> list:
    """The members of a union, or the type itself."""
    return list(get_args(annotation)) if get_origin(annotation) in (Union, UnionType) else [annotation]


def is_of(annotation: Any, value: Any) -> bool:
    """Whether a value is of the type, whatever its range."""
    bare, _ = parts(annotation)
    if len(options(bare)) > 1:
        return any(is_of(option, value) for option in options(bare))
    if get_origin(bare) is list:
        return isinstance(value, list) and all(is_of(get_args(bare)[0], item) for item in value)
    if get_origin(bare) is Literal:
        return value in get_args(bare)
    if bare is float:  # a text such as 1e-05 is a number, see `settings.Real`
        return value == "3" or (type(value) in (int, float) and math.isfinite(value))
    return type(value) is bare


def expectations(annotation: Any) -> list[str]:
    """What a message may name as expected instead of a value of another type."""
    bare, _ = parts(annotation)
    if get_origin(bare) is list:
        return ["list", *expectations(get_args(bare)[0])]
    if get_origin(bare) is Literal:
        return [repr(get_args(bare)[-1])]
    if len(options(bare)) > 1:
        return [name for option in options(bare) if option is not NoneType for name in expectations(option)]
    return ["number", "than"] if bare is float else [TYPE_NAMES[bare]]  # no NaN is less or greater than a bound


def wrong_types(annotation: Any, good: Any) -> list[tuple[Any, Any]]:
    """Pairs: a value that is none of the type, and the part of it that is wrong."""
    bare, _ = parts(annotation)
    wrong = [(probe, probe) for probe in PROBES if not is_of(bare, probe)]
    if get_origin(bare) is list:
        wrong = [(probe, probe) for probe, _ in wrong if not isinstance(probe, list)]
        wrong += [([*good, probe], probe) for probe in PROBES if not is_of(get_args(bare)[0], probe)]
    if get_origin(bare) is Literal:
        wrong += [(text, text) for option in get_args(bare) for text in (f"{option}x", option.upper(), [option])]
    return wrong


def out_of_range(annotation: Any, constraints: list, good: Any) -> list[tuple[Any, Any, str]]:
    """Triples: a value just outside what a constraint allows, its wrong part, and what is expected."""
    bare, own = parts(annotation)
    step = 1e-9 if bare is float else 1
    wrong = []
    for constraint in [*constraints, *own]:
        match constraint:
            case Ge(ge=bound):
                wrong.append((bound - step, bound - step, f"greater than or equal to {bound}"))
            case Gt(gt=bound):
                wrong += [(value, value, f"greater than {bound}") for value in (bound, bound - step)]
            case Le(le=bound):
                wrong.append((bound + step, bound + step, f"less than or equal to {bound}"))
            case Lt(lt=bound):
                wrong += [(value, value, f"less than {bound}") for value in (bound, bound + step)]
            case MinLen(min_length=length):
                wrong.append((good[: length - 1], good[: length - 1], f"at least {length}"))
            case _:  # a validator, or no NaN: tried as values of another type
                assert type(constraint).__name__ in ("BeforeValidator", "AllowInfNan"), "this test does not know it"
    if get_origin(bare) is list:
        for option in options(parts(get_args(bare)[0])[0]):
            inner = out_of_range(option, [], "word")
            wrong += [([*good[1:], value], part, expected) for value, part, expected in inner]
    return wrong


def value_at(values: dict, key: str) -> Any:
    for part in filter(None, key.split(".")):
        values = values[part]
    return values


def changed(key: str, *value: Any) -> dict:
    """A copy of the good settings with one of them changed or added, or taken out where no value is given."""
    values = copy.deepcopy(GOOD)
    section, _, name = key.rpartition(".")
    value_at(values, section).pop(name, None)
    if value:
        value_at(values, section)[name] = value[0]
    return values


def shown(value: Any) -> str:
    """How a message may show a value: a text that was read as a number is shown as that number."""
    return rf"({re.escape(repr(value))}|{re.escape(value)})" if value in ("nan", "inf") else re.escape(repr(value))


def cases_of_wrong_types():
    for key, field in LEAVES.items():
        for value, part in wrong_types(field.annotation, value_at(GOOD, key)):
            yield pytest.param(key, value, part, expectations(field.annotation), id=f"{key}={value}")
    for key in SECTIONS:
        for value in (None, True, 3, "word", [], [{"a": 1}]):
            yield pytest.param(key, value, value, ["dictionary"], id=f"{key}={value}")


def cases_out_of_range():
    for key, field in LEAVES.items():
        for value, part, expected in out_of_range(field.annotation, field.metadata, value_at(GOOD, key)):
            yield pytest.param(key, value, part, expected, id=f"{key}={value}")


@pytest.fixture
def refusal(tmp_path):
    """Write settings to params.yaml and return the one line that refuses them."""

    def load(values: Any) -> str:
        path = tmp_path / "params.yaml"
        if isinstance(values, bytes):
            path.write_bytes(values)
        else:
            path.write_text(yaml.dump(values, Dumper=yaml.CSafeDumper, sort_keys=False), encoding="utf-8")
        with pytest.raises(UserError) as error:
            settings.load(path)
        text = str(error.value)
        assert text.startswith(f"{path}: ")
        assert len(text.splitlines()) == 1
        counted["bad parameters refused"] += 1
        return text.removeprefix(f"{path}: ")

    return load


@pytest.fixture
def accepted(tmp_path):
    """Write settings to params.yaml and load them."""

    def load(values: dict | str) -> Settings:
        path = tmp_path / "params.yaml"
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
        return settings.load(path)

    return load


def test_committed_settings_load():
    assert settings.load(ROOT / "params.yaml").model_dump().keys() >= COMMITTED.keys()


def test_schema_and_committed_settings_have_the_same_keys():
    assert sorted(fields(Settings)) == sorted(key for key, _ in settings.leaves(COMMITTED))
    assert len(LEAVES) > 20


@pytest.mark.parametrize(("key", "value", "part", "expected"), list(cases_of_wrong_types()))
def test_wrong_type_is_refused(refusal, key, value, part, expected):
    text = refusal(changed(key, value))
    assert re.search(rf"(^|; ){re.escape(key)}(\.\d+)?: was {shown(part)}, ", text)
    assert any(name in text for name in expected)


@pytest.mark.parametrize(("key", "value", "part", "expected"), list(cases_out_of_range()))
def test_out_of_range_is_refused(refusal, key, value, part, expected):
    text = refusal(changed(key, value))
    assert re.search(rf"(^|; ){re.escape(key)}(\.\d+)?: was {shown(part)}, ", text)
    assert expected in text


# Written out, as a bound that is taken out of the schema takes its cases above with it.
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("seed", 2**32),
        ("threads", 0),
        ("threads", 3_000_000_000),
        ("data.path", ""),
        ("data.source_classes", [3]),
        ("data.source_classes", [-1, 3]),
        ("data.validation_fraction", -0.1),
        ("data.validation_fraction", 1.0),
        ("data.source_per_class", 0),
        ("data.target_per_class", -5),
        ("model.conv_filters", []),
        ("model.conv_filters", [32, 0]),
        ("model.conv_filters", [10**9]),
        ("model.dense_units", [-1]),
        ("model.dropout", -0.1),
        ("model.dropout", 1.0),
        ("pretrain.batch_size", 0),
        ("pretrain.batch_size", 10**9),
        ("pretrain.optimizer", "adamw"),
        ("pretrain.learning_rate", 0.0),
        ("pretrain.learning_rate", -0.001),
        ("pretrain.learning_rate", math.inf),
        ("pretrain.schedule", "linear"),
        ("finetune_output.batch_size", 0),
        ("finetune_fc.learning_rate", 0.0),
        ("finetune_fc.trainable", []),
        ("finetune_fc.head", "drop"),
    ],
)
def test_impossible_value_is_refused(refusal, key, value):
    assert refusal(changed(key, value)).startswith(key)


@pytest.mark.parametrize("key", [*LEAVES, *SECTIONS])
def test_missing_is_refused(refusal, key):
    assert f"{key}: missing, expected" in refusal(changed(key))


@pytest.mark.parametrize("key", [*LEAVES, *SECTIONS])
def test_misspelt_is_refused(refusal, key):
    values = changed(key)
    section, _, name = key.rpartition(".")
    value_at(values, section)[f"{name}x"] = value_at(GOOD, key)
    text = refusal(values)
    # A misspelt finetune_… section is a further stage's, so that only the right name's absence can be told.
    assert f"{key}x: unknown key, expected" in text or key.startswith("finetune_")
    assert re.search(rf"\b{name}\b", text)


@pytest.mark.parametrize("key", [key for key in [*LEAVES, *SECTIONS] if "." in key or "finetune_" not in key])
def test_unknown_key_beside_the_right_ones_is_refused(refusal, key):
    assert f"{key}x: unknown key, expected" in refusal(changed(f"{key}x", value_at(GOOD, key)))


def test_unknown_section_is_refused_and_the_known_ones_are_named(refusal):
    text = refusal(GOOD | {"augmentation": {"flip": True}})
    assert text.startswith("augmentation: unknown key, expected ")
    assert all(name in text for name in COMMITTED)


@pytest.mark.parametrize("key", ["a\nb", "finetune_a\nb", "model.a\nb", "model.a\x1b[31m\rb"])
def test_unprintable_key_is_refused_in_one_line(refusal, key):
    assert refusal(changed(key, 1)).isprintable()


@pytest.mark.parametrize("key", ["data.source_classes", "data.target_classes"])
def test_empty_half_is_refused(refusal, key):
    text = refusal(changed(key, []))
    assert f"{key}: was []" in text
    assert "at least 2" in text


@pytest.mark.parametrize("classes", [[0, 1, 1], ["cat", "dog", "cat"]])
def test_class_twice_in_a_half_is_refused(refusal, classes):
    text = refusal(changed("data.source_classes", classes))
    assert f"data.source_classes: was {classes}, expected each class once" in text


def test_class_in_both_halves_is_refused(refusal):
    text = refusal(changed("data.target_classes", [9, 4, 8, 2, 7]))
    assert "data.target_classes: was [9, 4, 8, 2, 7], expected none of the source's: [2, 4]" in text


@pytest.mark.parametrize("stage", ["finetune_output", "finetune_fc", "finetune_further"])
@pytest.mark.parametrize("layers", [["fc9"], ["conv3", "output"], ["dropout1"], ["pool"], ["Output"], [""]])
def test_layer_that_does_not_exist_is_refused(refusal, stage, layers):
    text = refusal(changed(f"{stage}.trainable", layers))
    assert f"{stage}.trainable: was {layers}, expected some of ['conv1', 'conv2', 'fc1', 'fc2', 'output']" in text


def test_existing_layers_are_those_of_the_model(refusal, accepted):
    values = changed("model", GOOD["model"] | {"conv_filters": [8, 8, 8], "dense_units": []})
    assert "expected some of ['conv1', 'conv2', 'conv3', 'output']" in refusal(values)
    for stage in ("finetune_output", "finetune_fc", "finetune_further"):
        values[stage] = values[stage] | {"trainable": ["conv3", "output"]}
    assert accepted(values).finetune("finetune_fc").trainable == ["conv3", "output"]


def test_layer_twice_is_refused(refusal):
    text = refusal(changed("finetune_fc.trainable", ["output", "fc2", "output"]))
    assert "finetune_fc.trainable: was ['output', 'fc2', 'output'], expected" in text
    assert "each once" in text


@pytest.mark.parametrize("epochs", [0, -1])
@pytest.mark.parametrize("stage", ["finetune_output", "finetune_fc", "finetune_further"])
def test_finetuning_without_epochs_is_refused(refusal, stage, epochs):
    text = refusal(changed(f"{stage}.epochs", epochs))
    assert f"{stage}.epochs: was {epochs}, expected greater than or equal to 1" in text


def test_pretraining_without_epochs_is_allowed_but_not_with_fewer(accepted, refusal):
    assert accepted(changed("pretrain.epochs", 0)).pretrain.epochs == 0
    assert "pretrain.epochs: was -1, expected greater than or equal to 0" in refusal(changed("pretrain.epochs", -1))


@pytest.mark.parametrize("stage", ["finetune_output", "finetune_fc", "finetune_further"])
def test_head_is_not_kept_where_class_counts_differ(refusal, accepted, stage):
    values = changed("data.target_classes", [5, 6, 7])
    for name in ("finetune_output", "finetune_fc", "finetune_further"):
        values[name] = values[name] | {"head": "reset"}
    assert accepted(values).finetune(stage).head == "reset"
    values[stage]["head"] = "keep"
    text = refusal(values)
    assert f"{stage}.head: was 'keep', expected 'reset'" in text
    assert "data.source_classes" in text
    assert "data.target_classes" in text


def test_head_is_not_reset_where_it_is_frozen(refusal):
    values = changed("finetune_fc", GOOD["finetune_fc"] | {"head": "reset", "trainable": ["fc1", "fc2"]})
    text = refusal(values)
    assert "finetune_fc.trainable: was ['fc1', 'fc2'], expected 'output' in it" in text


def test_further_finetuning_section_is_found(accepted):
    params = accepted(COMMITTED | {"finetune_xyz": COMMITTED["finetune_fc"] | {"epochs": 3}})
    assert params.finetune("finetune_xyz").epochs == 3
    assert list(params.finetune_stages) == ["finetune_output", "finetune_fc", "finetune_xyz"]


@pytest.mark.parametrize("stage", ["finetune_xyz", "pretrain", "data"])
def test_stage_without_section_is_refused(accepted, stage):
    with pytest.raises(UserError, match=f"^params.yaml: {stage}: missing, expected [^\n]+$"):
        accepted(COMMITTED).finetune(stage)


@pytest.mark.parametrize("text", ["1e-05", "1e-5", "1.0e-05", "0.00001"])
def test_small_learning_rate_is_accepted_as_dvc_writes_it(accepted, text):
    before = "learning_rate: 0.001"
    written = yaml.safe_dump(COMMITTED)
    assert written.count(before) == 3
    assert accepted(written.replace(before, f"learning_rate: {text}")).pretrain.learning_rate == 1e-5


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError) as error:
        settings.load(tmp_path / "params.yaml")
    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/params\.yaml: No such file[^\n]+", str(error.value))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"seed: [1, 2", "no valid YAML"),
        (b"seed: 1\n\tdata: 2\n", "no valid YAML"),
        (b"seed: !!python/object/apply:os.getcwd []", "no valid YAML"),
        (b"seed: 2020-99-99", "no valid YAML"),
        (b"seed: " + b"9" * 5000, "no valid YAML"),
        (b"[" * 5000, "no valid YAML"),
        (b"seed: \x00", "no valid YAML"),
        (b"seed: \xff\xfe", "no valid YAML"),
        ("# größer\nseed: 1\n".encode("latin-1"), "no valid YAML"),
        (b"", "expected"),
        (b"# nothing but a comment\n", "expected"),
        (b"- seed\n- data\n", "expected"),
        (b"seed", "expected"),
        (b"7", "expected"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_file_that_holds_no_settings_is_refused(refusal, content, problem):
    assert problem in refusal(content)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (yaml.safe_dump(changed("finetune_fc.epochs", "ten")), "finetune_fc.epochs: was 'ten', expected"),
        (None, "No such file"),
    ],
    ids=["wrong type", "no file"],
)
def test_program_ends_with_one_line_and_no_traceback(tmp_path, content, problem):
    if content:
        (tmp_path / "params.yaml").write_text(content)
    result = subprocess.run(
        [sys.executable, "-m", "stages.prepare"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stdout == ""
    assert re.fullmatch(rf"error: params\.yaml: {problem}[^\n]+\n", result.stderr)
