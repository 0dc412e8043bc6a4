"""A study's plan: which settings, which seeds, which models are compared, and which questions are asked about them."""

import itertools
import json
import re
import subprocess
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, model_validator

from stages.settings import Section, Settings, leaves, problems, read_yaml
from stages.shared.errors import UserError

Changes = dict[str, Any]  # settings by dotted key
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")]


class ComparedModel(Section):
    """One of the models that are compared: the one that `stage` trains in the experiments `run`."""

    run: str
    stage: str


class Question(Section):
    """Is the second better than the first? Asked at every number of images, paired by seed. Names models or choices."""

    ask: str
    first: str
    second: str

    @model_validator(mode="after")
    def _of_two(self) -> "Question":
        if self.first == self.second:
            raise ValueError(f"second: was {self.second!r}, expected another model than the first")
        return self


class Choice(Section):
    """Which of several models to take, chosen on validation images at every number of training images."""

    choose: str
    among: list[str] = Field(min_length=2)


class Plan(Section):
    """A plan file. Settings are keys of ``params.yaml``; any that are not named keep their committed values."""

    title: str
    notes: str = Field(description="what else a reader of the page has to know: about the images, about the recipe")
    page: str = Field(pattern=r"\.md$")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    settings: Changes
    images_per_class: dict[Annotated[int, Field(ge=1)], Changes] = Field(min_length=1)
    runs: dict[Name, Changes] = Field(min_length=1)
    models: dict[str, dict[str, ComparedModel]] = Field(min_length=1)
    questions: list[Question] = Field(min_length=1)
    choices: list[Choice]

    @model_validator(mode="after")
    def _names_exist(self) -> "Plan":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: was {self.seeds}, expected each once")
        for name, model in self.named_models.items():
            if model.run not in self.runs:
                raise ValueError(f"models: {name}: run: was {model.run!r}, expected one of {list(self.runs)}")
        chosen = [choice.choose for choice in self.choices]
        known = [*self.named_models, *chosen]
        for names in (known, *[choice.among for choice in self.choices]):
            if len(set(names)) < len(names):
                raise ValueError(f"models and choices: was {names}, expected each once")
        for name in sorted(self.asked):
            if name not in known:
                raise ValueError(f"questions: was {name!r}, expected one of {known}")
        for name in [name for choice in self.choices for name in choice.among]:
            if name not in self.named_models:
                raise ValueError(f"choices: among: was {name!r}, expected one of {list(self.named_models)}")
        return self

    @cached_property
    def named_models(self) -> dict[str, ComparedModel]:
        """Every model by its full name, such as "output layer, pretrained"."""
        return {f"{way}, {origin}": model for way, origins in self.models.items() for origin, model in origins.items()}

    @property
    def asked(self) -> set[str]:
        """The models and choices that a question is about."""
        return {name for question in self.questions for name in (question.first, question.second)}

    def candidates(self, name: str) -> list[str]:
        """The models that `name` in a question can stand for: those of a choice, or the one of that name."""
        return next((choice.among for choice in self.choices if choice.choose == name), [name])


def load(path: Path, changes: Iterable[str] = ()) -> Plan:
    """Read a plan; `changes`, each KEY=VALUE, override its settings of all runs.

    Raises `UserError` with one line if the file is missing, not YAML or does not fit, or a change would have no effect.
    """
    if not re.fullmatch(r"[A-Za-z0-9-]+", path.stem):
        raise UserError(f"{path}: expected a file name of letters, digits and hyphens: it names the experiments")
    try:
        plan = Plan.model_validate(read_yaml(path, "a study's plan, such as studies/digits.yaml"))
    except ValidationError as error:
        raise UserError(f"{path}: {problems(error, 'docs/studies.md')}") from None
    changed = dict(_change(text) for text in changes)
    of_some = {key for part in (plan.images_per_class, plan.runs) for settings in part.values() for key in settings}
    if fixed := sorted({"seed", *of_some} & set(changed)):
        raise UserError(f"-S {fixed[0]}: {path} itself sets it in some of the runs, expected another setting")
    return plan.model_copy(update={"settings": plan.settings | changed})


def _change(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    try:
        if equals:
            return key, yaml.safe_load(value)
    except yaml.YAMLError:
        pass
    raise UserError(f"-S: was {text!r}, expected KEY=VALUE, such as data.path=data/raw/mine.npz")


def committed_settings() -> Changes:
    """Every setting of ``params.yaml`` as last committed; raises `UserError` if one is missing."""
    shown = subprocess.run(["git", "show", "HEAD:./params.yaml"], capture_output=True, text=True, check=False)
    if shown.returncode:
        raise UserError(f"params.yaml: {shown.stderr.strip()}; expected a Git repository that has it committed")
    settings = dict(leaves(yaml.safe_load(shown.stdout)))
    if missing := ", ".join(key for key in Settings().by_key() if key not in settings):
        raise UserError(f"params.yaml: {missing}: missing in the last commit, expected a value")
    return settings


def experiment_name(study: str, run: str, images: int, seed: int) -> str:
    """The name of an experiment, such as ``digits_pretrained_20_s1``; `images` per class."""
    return f"{study}_{run}_{images}_s{seed}"


def experiments(plan: Plan, study: str) -> dict[str, Changes]:
    """Every experiment that the plan asks for: all its settings, by its name.

    Raises `UserError` if a setting does not exist or has a value that is not allowed, a stage does not exist, or a
    question compares models that are tested on different images.
    """
    committed = committed_settings()
    wanted = {}
    for images, run, seed in itertools.product(plan.images_per_class, plan.runs, plan.seeds):
        name = experiment_name(study, run, images, seed)
        changes = plan.settings | plan.images_per_class[images] | plan.runs[run] | {"seed": seed}
        wanted[name] = _checked(committed, changes, name)
        if (was := wanted[name]["data.target_per_class"]) != images:
            raise UserError(f"{name}: data.target_per_class: was {was}, expected {images}, its key in images_per_class")
    stages = sorted({key.split(".")[0] for key in committed if key.endswith(".epochs")})
    for name, model in plan.named_models.items():
        if model.stage not in stages:
            raise UserError(f"models: {name}: stage: was {model.stage!r}, expected one of {stages}")
    for question in plan.questions:
        names = plan.candidates(question.first) + plan.candidates(question.second)
        first, *others = [_tested_on(plan, study, name, wanted) for name in names]
        if other := [tested for tested in others if tested != first]:
            raise UserError(f"questions: {question.ask!r}: tested on {first} and {other[0]}, expected the same classes")
    return wanted


def _tested_on(plan: Plan, study: str, name: str, wanted: dict[str, Changes]) -> tuple[str, list]:
    """The dataset and the classes that a model is tested on."""
    model = plan.named_models[name]
    settings = wanted[experiment_name(study, model.run, next(iter(plan.images_per_class)), plan.seeds[0])]
    half = "source" if model.stage == "pretrain" else "target"
    other = half == "target" and settings["data.target_path"] != Settings().data.target_path
    return settings["data.target_path" if other else "data.path"], settings[f"data.{half}_classes"]


def _checked(committed: Changes, changes: Changes, where: str) -> Changes:
    """The committed settings with changes."""
    if unknown := sorted(set(changes) - set(committed)):
        raise UserError(f"{where}: {unknown[0]}: unknown key, expected a setting of params.yaml")
    try:
        Settings.model_validate(_nested(committed | changes))
    except ValidationError as error:
        raise UserError(f"{where}: {problems(error)}") from None
    return committed | changes


def _nested(settings: Changes) -> dict:
    """The sections that `leaves` took apart."""
    sections: dict = {}
    for key, value in settings.items():
        *names, leaf = key.split(".")
        section = sections
        for name in names:
            section = section.setdefault(name, {})
        section[leaf] = value
    return sections


def overrides(changes: Changes) -> list[str]:
    """The settings as arguments of ``dvc exp run``."""
    return [part for key, value in changes.items() for part in ("-S", f"{key}={json.dumps(value, ensure_ascii=False)}")]
