"""Expand a plan into experiments, each with a name and all of its settings; find the trainings that they share."""

import hashlib
import itertools
import json
import re
import shlex
from pathlib import Path

from stages.settings import Settings, check
from stages.shared.errors import SettingError, UserError
from stages.shared.inputs import stage_reads
from stages.shared.yaml_files import parse_yaml
from studies.plan import FlatSettings, Plan
from studies.repository import committed_settings


def experiment_name(study: str, run: str, images: int, seed: int) -> str:
    """Return an experiment's name without its hash, such as ``mnist_pretrained_20_s1``; `images` is per class."""
    return f"{study}_{run}_{images or 'all'}_s{seed}"


def expand(plan: Plan, study: str) -> dict[str, FlatSettings]:
    """Return all settings of each experiment of a plan, by the experiment's name.

    They are in the order in which they are run: all runs at each number of images, for two seeds at a time.
    The name ends with a hash of the settings: studies of other settings never touch each other's experiments.
    Raises `UserError` if a setting or stage does not exist, a value is invalid, or a question compares models that are
    tested on different images.
    """
    committed = committed_settings()
    experiments = {}
    pairs = [plan.seeds[i : i + 2] for i in range(0, len(plan.seeds), 2)]
    order = (each for pair in pairs for each in itertools.product(plan.images_per_class, pair, plan.runs))
    for images, seed, run in order:
        name = experiment_name(study, run, images, seed)
        given = {"data.target_per_class": images or None} | plan.images_per_class[images]
        settings = committed | plan.settings | given | plan.runs[run] | {"seed": seed}
        if unknown := sorted(set(settings) - set(committed)):
            raise UserError(f"{name}: {unknown[0]}: unknown key, expected a setting of params.yaml")
        try:
            check(_nested(settings))
        except SettingError as error:
            raise UserError(f"{name}: {str(error).removeprefix('params.yaml: ')}") from None
        if (was := settings["data.target_per_class"]) != (images or None):
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
        if model.control and not settings.get(f"{model.stage}.control"):
            raise UserError(f"models: {name}: control: was true, expected {model.stage}.control: true in its run")
        test_sets[name] = _test_set(settings, model.stage)
    among = {choice.choose: choice.among for choice in plan.choices}
    for question in plan.questions:
        names = [n for asked in (question.first, question.second) for n in among.get(asked, [asked])]
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
    given = (f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in settings.items())
    return [part for argument in given for part in ("-S", argument)]


def training_command(plan: Plan, name: str, images: int) -> str:
    """Return the ``dvc exp run`` line that trains a model on all images, but 1% where it needs a test split."""
    model, committed = plan.named_models[name], committed_settings()
    settings = plan.settings | plan.images_per_class[images] | plan.runs[model.run]
    settings |= {key: False for key in committed if key.endswith(".control")}
    settings |= {"data.target_per_class": None, "data.validation_fraction": 0.0, "data.test_fraction": 0.01}
    changed = overrides({key: value for key, value in settings.items() if committed.get(key) != value})
    plain = [re.sub(r'^([\w.]+=)"([\w./-]+)"$', r"\1\2", argument) for argument in changed]
    return shlex.join(["dvc", "exp", "run", *plain])


def find_dependencies(experiments: dict[str, FlatSettings]) -> tuple[dict[str, set[str]], set[str]]:
    """Return the experiments that each experiment waits for, and those that are the first with their pretraining.

    Two experiments share a training if all settings that its result depends on are equal.
    """
    stages = parse_yaml(Path("dvc.yaml").read_text(), aliases=True)["stages"]
    first: dict[str, str] = {}  # experiment by training stage and settings
    waits_for, first_pretrainings = {}, set()
    for name, settings in experiments.items():
        trained_by = {}
        for stage in (stage for stage in stages if f"{stage}.epochs" in settings):
            upstream = [stages[part] for part in ("prepare", "pretrain", stage)]
            read = {key: value for key, value in settings.items() if any(stage_reads(part, key) for part in upstream)}
            if stage == "pretrain":
                read = {key: value for key, value in read.items() if not key.startswith("data.target_")}
            trained_by[stage] = first.setdefault(f"{stage} {json.dumps(read, sort_keys=True)}", name)
        waits_for[name] = set(trained_by.values()) - {name}
        first_pretrainings.add(trained_by["pretrain"])
    return waits_for, first_pretrainings
