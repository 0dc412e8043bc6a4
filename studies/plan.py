"""Define, read and check a study's plan: settings, seeds, compared models and questions."""

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from stages.settings import Section, Settings
from stages.shared.errors import UserError, describe_all, short_repr
from stages.shared.yaml_files import parse_yaml, read_yaml

ALL = 0  # images; ``all`` in a plan
FlatSettings = dict[str, Any]  # settings by dotted key
Images = Annotated[int, Field(ge=ALL), BeforeValidator(lambda number: ALL if number == "all" else number)]


class ComparedModel(Section):
    """A compared model: the one that `stage` trains in the experiments of `run`, or its control."""

    run: str
    stage: str
    control: bool = False


class Question(Section):
    """Ask whether `second` is better than `first`, at each number of images; both name a model or a choice."""

    ask: str
    first: str
    second: str


class Choice(Section):
    """Choose one of several models by validation accuracy, at each number of training images.

    With `against`, the page begins with the model chosen at the most images, compared with that one.
    """

    choose: str
    among: list[str] = Field(min_length=2)
    against: str | None = None


class Plan(Section):
    """The content of a plan file. Settings that it does not name keep their committed values in ``params.yaml``."""

    title: str
    notes: str  # shown on the page: anything a reader must know about the images or the recipe
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    settings: FlatSettings
    images_per_class: dict[Images, FlatSettings] = Field(min_length=1)  # in the order in which they are run
    runs: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")], FlatSettings] = Field(min_length=1)
    models: dict[str, dict[str, ComparedModel]] = Field(min_length=1)
    questions: list[Question] = Field(min_length=1)
    choices: list[Choice]
    with_backbone: dict[str, FlatSettings] = Field({})  # changes to `settings` and to runs if -S names a backbone

    @model_validator(mode="after")
    def _check_names(self) -> "Plan":
        models, among = list(self.named_models), [choice.among for choice in self.choices]
        known = [*models, *(choice.choose for choice in self.choices)]
        unique: list[list] = [self.seeds, known, *among]
        for values in unique:
            if len(set(values)) < len(values):
                raise ValueError(f"seeds, models and choices: was {values}, expected each once")
        names = [
            *((f"models: {name}: run", model.run, list(self.runs)) for name, model in self.named_models.items()),
            *(("questions: first", question.first, known) for question in self.questions),
            *(("questions: second", q.second, [name for name in known if name != q.first]) for q in self.questions),
            *(("choices: among", name, models) for candidates in among for name in candidates),
            *(("choices: against", choice.against, models) for choice in self.choices if choice.against),
            *(("with_backbone", name, ["settings", *self.runs]) for name in self.with_backbone),
        ]
        for key, name, allowed in names:
            if name not in allowed:
                raise ValueError(f"{key}: was {name!r}, expected one of {allowed}")
        return self

    @cached_property
    def named_models(self) -> dict[str, ComparedModel]:
        """Every model by its full name, such as "output layer, pretrained"."""
        return {f"{way}, {origin}": model for way, origins in self.models.items() for origin, model in origins.items()}

    @property
    def asked(self) -> set[str]:
        """The models and choices that the questions compare."""
        return {name for question in self.questions for name in (question.first, question.second)}

    def with_number(self, every: int, smallest: int) -> "Plan":
        """Replace `ALL` by the number it stands for, `every`; keep numbers up to 80% of the `smallest` class's."""
        kept = {n: changes for n, changes in self.images_per_class.items() if n != ALL and n <= 0.8 * smallest}
        kept[every] = self.images_per_class[ALL]
        return self.model_copy(update={"images_per_class": dict(sorted(kept.items()))})


def load(path: Path, changes: Iterable[str] = ()) -> Plan:
    """Read a plan and override its settings in all runs; each of `changes` is KEY=VALUE.

    Raises `UserError` if the file is missing or invalid, or if the plan itself varies a setting to override.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", path.stem):
        raise UserError(f"{path}: expected a file name of letters, digits and hyphens: it names the experiments")
    try:
        plan = Plan.model_validate(read_yaml(path, "a study's plan, such as studies/mnist.yaml"))
    except ValidationError as error:
        raise UserError(f"{path}: {describe_all(error, 'docs/studies.md')}") from None
    overrides = dict(_parse_change(text) for text in changes)
    if overrides.get("model.backbone") and (changed := plan.with_backbone):
        same = {"data.path": overrides.get("data.target_path", Settings().data.path)}  # as nothing is pretrained
        runs = {name: settings | changed.get(name, {}) for name, settings in plan.runs.items()}
        plan = plan.model_copy(update={"settings": plan.settings | same | changed.get("settings", {}), "runs": runs})
    for key, value in [*plan.settings.items(), *overrides.items(), *plan.images_per_class.items(), *plan.runs.items()]:
        if "${" in repr(value):
            raise UserError(f"{path}: {key}: was {short_repr(value)}, expected plain values: ${{...}} may be a secret")
    varied = {"seed", "data.target_per_class"}.union(*plan.images_per_class.values(), *plan.runs.values())
    if refused := sorted(varied & set(overrides)):
        raise UserError(f"-S {refused[0]}: {path} itself sets it in some runs, expected another setting")
    return plan.model_copy(update={"settings": plan.settings | overrides})


def _parse_change(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    try:
        if equals:
            return key, parse_yaml(value)
    except ValueError:
        pass
    raise UserError(f"-S: was {text!r}, expected KEY=VALUE, such as data.path=data/raw/mine.npz")
