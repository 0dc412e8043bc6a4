"""The settings of every stage: ``params.yaml``, typed and validated before any long work."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

PARAMS = Path("params.yaml")


class UserError(Exception):
    """A mistake in what the user gave: its text is one line that says what, where, and what was expected."""


def stop_on_user_error(main):
    """Make `main` end with one line on standard error and exit code 1, not a traceback, where the user can mend it."""

    def wrapped():
        sys.stdout.reconfigure(errors="backslashreplace")  # a class may have a name that the terminal cannot show
        try:
            main()
        except UserError as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit(130)
        except OSError as error:  # a full disk, a folder that may not be written
            if error.strerror is None:
                raise
            sys.exit(f"error: {error.filename or 'writing a file'}: {error.strerror}")

    return wrapped


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-05, which DVC writes, as a string."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


Real = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
ClassList = Annotated[list[Annotated[int, Field(ge=0)] | Annotated[str, Field(min_length=1)]], Field(min_length=2)]
Units = Annotated[int, Field(ge=1, le=65_536)]  # of a layer


class Section(BaseModel):
    """A section of ``params.yaml``: every key required, unknown keys refused, no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Data(Section):
    path: str = Field(min_length=1, description="the dataset: arrays (.npz), or a pointer that is fetched once (.yaml)")
    source_classes: ClassList = Field(description="classes to pretrain on: label numbers, or class names")
    target_classes: ClassList = Field(description="classes to fine-tune on")
    validation_fraction: Real = Field(
        ge=0,
        lt=1,
        description="part of the training images held out for the curves; 0: curves on the test images",
    )
    source_per_class: int | None = Field(ge=1, description="training images kept per source class; null: all")
    target_per_class: int | None = Field(ge=1, description="training images kept per target class; null: all")

    @model_validator(mode="after")
    def _disjoint(self):
        for half in ("source_classes", "target_classes"):
            classes = getattr(self, half)
            if len(set(classes)) < len(classes):
                raise ValueError(f"data.{half}: was {classes}, expected each class once")
        both = [name for name in self.source_classes if name in self.target_classes]
        if both:
            raise ValueError(f"data.target_classes: was {self.target_classes}, expected none of the source's: {both}")
        return self


class Model(Section):
    conv_filters: list[Units] = Field(min_length=1, description="filters of conv1, conv2, ...")
    dense_units: list[Units] = Field(description="units of fc1, fc2, ...")
    dropout: Real = Field(ge=0, lt=1, description="rate after pooling and after each dense layer; 0: none")
    rescale: bool = Field(description="true: standardise the pixels inside the model; false: raw 0-255")

    @property
    def layers_with_weights(self) -> list[str]:
        """The names that `trainable` chooses from."""
        convs = [f"conv{i}" for i, _ in enumerate(self.conv_filters, 1)]
        return [*convs, *[f"fc{i}" for i, _ in enumerate(self.dense_units, 1)], "output"]


class Pretrain(Section):
    epochs: int = Field(ge=0, le=1_000_000, description="passes over the training images; 0: random features")
    batch_size: int = Field(ge=1, le=1_000_000, description="images per training step")
    optimizer: Literal["rmsprop", "adam", "sgd"] = Field(description="Keras's optimiser of that name, its defaults")
    learning_rate: Real = Field(gt=0, description="of the optimiser; the peak of a schedule")
    schedule: Literal["constant", "cosine"] = Field(
        description="constant, or cosine: linear warm-up over the first fifth of the steps, then a cosine to 0"
    )


class Finetune(Pretrain):
    trainable: list[str] = Field(min_length=1, description="names of the layers to train; the others are frozen")
    head: Literal["keep", "reset"] = Field(
        description="keep the source's output weights to start from, or draw new ones"
    )
    epochs: int = Field(ge=1, le=1_000_000, description="passes over the training images")


class Settings(Section):
    """All of ``params.yaml``; a further section named ``finetune_…`` is a further fine-tuning stage."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Finetune]

    seed: int = Field(ge=0, lt=2**32, description="of every random number: subsets, weights, shuffling, dropout")
    threads: int | None = Field(ge=1, le=1024, description="threads of TensorFlow; null: one per core that may be used")
    devices: int = Field(ge=1, le=1024, description="GPUs that share every batch; 1: one device, GPU or CPU")
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = Field(
        description="Keras's dtype policy; the mixed ones are for GPUs, bfloat16 for new CPUs, and need model.rescale"
    )
    feature_memory: int = Field(
        ge=0, description="bytes of memory for what frozen layers compute once; beyond it a temporary file is used"
    )
    data: Data
    model: Model
    pretrain: Pretrain
    finetune_output: Finetune
    finetune_fc: Finetune

    @model_validator(mode="before")
    @classmethod
    def _only_finetune_may_be_added(cls, sections: Any) -> Any:
        if not isinstance(sections, dict):
            raise ValueError("expected sections and settings, as in the repository's own")
        for name in sections:
            if name not in cls.model_fields and not str(name).startswith("finetune_"):
                raise ValueError(f"{name}: unknown key, expected {', '.join(cls.model_fields)} or a finetune_… section")
        return sections

    @model_validator(mode="after")
    def _fits_the_network(self):
        if self.precision != "float32" and not self.model.rescale:
            raise ValueError(
                f"precision: was {self.precision!r}, expected 'float32': from raw 0-255 pixels (model.rescale: false) "
                "the network does not learn in 16 bits"
            )
        layers = self.model.layers_with_weights
        same_classes = len(self.data.source_classes) == len(self.data.target_classes)
        for name, stage in {"pretrain": self.pretrain, **self.finetune_stages}.items():
            if stage.batch_size % self.devices:
                wanted = f"expected a multiple of devices, {self.devices}"
                raise ValueError(f"{name}.batch_size: was {stage.batch_size}, {wanted}")
        for name, stage in self.finetune_stages.items():
            unknown = [layer for layer in stage.trainable if layer not in layers]
            if unknown or len(set(stage.trainable)) < len(stage.trainable):
                raise ValueError(f"{name}.trainable: was {stage.trainable}, expected some of {layers}, each once")
            if stage.head == "keep" and not same_classes:
                raise ValueError(
                    f"{name}.head: was 'keep', expected 'reset': data.source_classes and data.target_classes "
                    "differ in number, so the source's output layer does not fit"
                )
            if stage.head == "reset" and "output" not in stage.trainable:
                raise ValueError(f"{name}.trainable: was {stage.trainable}, expected 'output' in it: head is 'reset'")
        return self

    @property
    def finetune_stages(self) -> dict[str, Finetune]:
        """The fine-tuning sections by stage name."""
        return {
            "finetune_output": self.finetune_output,
            "finetune_fc": self.finetune_fc,
            **(self.__pydantic_extra__ or {}),
        }

    def finetune(self, stage: str) -> Finetune:
        """The section of one fine-tuning stage; raises `UserError` when ``params.yaml`` has none of that name."""
        if stage not in self.finetune_stages:
            raise UserError(f"{PARAMS}: {stage}: missing, expected a section of that name")
        return self.finetune_stages[stage]


def _line(error: dict) -> str:
    """One validation error in the form: key, what it was, what was expected."""
    key = ".".join(str(part) for part in error["loc"] if not str(part).startswith(("constrained-", "function-")))
    key = key.removesuffix(".int").removesuffix(".str") or "the file"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if error["type"] == "value_error":
        return message if message.startswith(key) or not error["loc"] else f"{key}: {message}"
    if error["type"] == "missing":
        return f"{key}: missing, expected a value"
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key, expected one of the keys of the repository's params.yaml"
    return f"{key}: was {error['input']!r}, {message}"


def one_line(error: ValidationError) -> str:
    """All that pydantic found, in one line; what cannot be printed, such as a line's end in a key, is escaped."""
    text = "; ".join(_line(e) for e in error.errors())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def read_yaml(path: Path, expected: str) -> Any:
    """What a YAML file holds; raises `UserError` with one line when it is missing or is no YAML."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}, expected {expected}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or no such date or number
        raise UserError(f"{path}: no valid YAML: {' '.join(str(error).split())}") from None


def load(path: Path = PARAMS) -> Settings:
    """Read and validate all settings.

    Raises `UserError`, naming key, value and what is allowed, when the file is missing, is no YAML or does not fit.
    """
    raw = read_yaml(path, "the settings; run in the repository's folder")
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{path}: {one_line(error)}") from None


def leaves(values: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every setting in a nested dictionary, as DVC names them."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nested(settings: dict[str, Any]) -> dict:
    """The opposite of `leaves`: sections from dotted keys."""
    sections: dict = {}
    for key, value in settings.items():
        *names, leaf = key.split(".")
        section = sections
        for name in names:
            section = section.setdefault(name, {})
        section[leaf] = value
    return sections
