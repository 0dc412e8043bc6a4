"""Expand a plan into experiments, each with a name and all of its settings; find the trainings that they share."""

import hashlib
import itertools
import json
from pathlib import Path

from stages.settings import Settings, check
from stages.shared.errors import SettingError, UserError
from stages.shared.inputs import stage_reads
from stages.shared.yaml_files import parse_yaml
from studies.plan import FlatSettings, Plan
from studies.repository import committed_settings


def experiment_name(study: str, run: str, images: int, seed: int) -> str:
    """Return an experiment's name without its hash, such as ``mnist_pretrained_20_s1``; `images` is per class."""
    return f"{study}_{run}_{images}_s{seed}"


def expand(plan: Plan, study: str) -> dict[str, FlatSettings]:
    """Return all settings of each experiment of a plan, by the experiment's name.

    The name ends with a hash of the settings: studies of other settings never touch each other's experiments.
    Raises `UserError` if a setting or stage does not exist, a value is invalid, or a question compares models that are
    tested on different images.
    """
    committed = committed_settings()
    experiments = {}
    for images, run, seed in itertools.product(plan.images_per_class, plan.runs, plan.seeds):
        name = experiment_name(study, run, images, seed)
        settings = committed | plan.settings | plan.images_per_class[images] | plan.runs[run] | {"seed": seed}
        if unknown := sorted(set(settings) - set(committed)):
            raise UserError(f"{name}: {unknown[0]}: unknown key, expected a setting of params.yaml")
        try:
            check(_nested(settings))
        except SettingError as error:
            raise UserError(f"{name}: {str(error).removeprefix('params.yaml: ')}") from None
        if (was := settings["data.target_per_class"]) != images:
            raise UserError(f"{name}: data.target_per_class: was {was}, expected {images}, its key in images_per_class")
        experiments[name] = settings
    _check_models(plan, study, experiments)
    texts = {name: json.dumps(settings, sort_keys=True).encode() for name, settings in experiments.items()}
    return {f"{name}_{hashlib.sha256(texts[name]).hexdigest()[:6]}": experiments[name] for name in experiments}


def _check_models(plan: Plan, study: str, experiments: dict[str, FlatSettings]) -> None:
    """Raise `UserError` if a model's stage does not exist, or a question compares models with different test images."""
    test_sets = {}
    for name, model in plan.named_models.items():
        settings = experiments[experiment_name(study, model.run, next(iter(plan.images_per_class)), plan.seeds[0])]
        stages = sorted(key.removesuffix(".epochs") for key in settings if key.endswith(".epochs"))
        if model.stage not in stages:
            raise UserError(f"models: {name}: stage: was {model.stage!r}, expected one of {stages}")
        test_sets[name] = _test_set(settings, model.stage)
    for question in plan.questions:
        names = plan.candidates(question.first) + plan.candidates(question.second)
        found = list(dict.fromkeys(test_sets[name] for name in names))
        if len(found) > 1:
            raise UserError(f"questions: {question.ask!r}: tested on {' and '.join(found)}, expected the same images")


def _test_set(settings: FlatSettings, stage: str) -> str:
    """Describe the images that a stage's model is tested on: classes and dataset."""
    if stage == "pretrain":
        return f"{settings['data.source_classes']} of {settings['data.path']}"
    same = settings["data.target_path"] == Settings().data.target_path
    return f"{settings['data.target_classes']} of {settings['data.path' if same else 'data.target_path']}"


def _nested(settings: FlatSettings) -> dict:
    """Group settings by section; the inverse of `leaves`."""
    sections: dict = {}
    for key, value in settings.items():
        section, _, leaf = key.rpartition(".")
        (sections.setdefault(section, {}) if section else sections)[leaf] = value
    return sections


def overrides(settings: FlatSettings) -> list[str]:
    """Return settings as arguments of ``dvc exp run``."""
    return [
        part for key, value in settings.items() for part in ("-S", f"{key}={json.dumps(value, ensure_ascii=False)}")
    ]


def training_keys(stages: dict, settings: FlatSettings) -> dict[str, str]:
    """Return a key of each training stage: its name and all settings that its result depends on.

    `stages` are those of ``dvc.yaml``. Two experiments share a training if its keys are equal.
    """
    keys = {}
    for stage in (name for name in stages if f"{name}.epochs" in settings):
        upstream = [stages[name] for name in ("prepare", "pretrain", stage)]
        read = {key: value for key, value in settings.items() if any(stage_reads(part, key) for part in upstream)}
        if stage == "pretrain":
            read = {key: value for key, value in read.items() if not key.startswith("data.target_")}
        keys[stage] = f"{stage} {json.dumps(read, sort_keys=True)}"
    return keys


def find_dependencies(experiments: dict[str, FlatSettings]) -> tuple[dict[str, set[str]], set[str]]:
    """Return the experiments that each experiment waits for, and those that are the first with their pretraining."""
    stages = parse_yaml(Path("dvc.yaml").read_text(), aliases=True)["stages"]
    first: dict[str, str] = {}  # experiment by training key
    waits_for, first_pretrainings = {}, set()
    for name, settings in experiments.items():
        trained_by = {stage: first.setdefault(key, name) for stage, key in training_keys(stages, settings).items()}
        waits_for[name] = set(trained_by.values()) - {name}
        first_pretrainings.add(trained_by["pretrain"])
    return waits_for, first_pretrainings
