"""Every setting once: type, range, default (the notebook's) and one line of help; and ``params.yaml``, checked."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WrapValidator, model_validator

from stages.shared.errors import UserError, one_line, shown

PARAMS = Path("params.yaml")
LARGEST_YAML = 100_000  # bytes
MOST_PROBLEMS = 5  # told at once


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-05, which DVC writes, as a string."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


Real = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
ClassList = Annotated[
    list[Annotated[int, Field(ge=0)] | Annotated[str, Field(min_length=1)]],
    Field(min_length=2),
    WrapValidator(lambda value, check: ["all"] if value in ("all", ["all"]) else check(value)),
]
Backbone = Literal[
    "MobileNetV3Small", "MobileNetV3Large", "EfficientNetV2B0", "EfficientNetV2S", "ResNet50V2", "ConvNeXtTiny"
]
Units = Annotated[int, Field(ge=1, le=65_536)]  # of a layer


class Section(BaseModel):
    """A section of a settings file: unknown keys are refused, types are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Data(Section):
    """Which images, and how they are split."""

    path: str = Field(
        "data/raw/cifar10.yaml", min_length=1, description="arrays (.npz), a folder of pictures, or a pointer (.yaml)"
    )
    target_path: str = Field(
        "data/raw/same.yaml", min_length=1, description="the target's, if another; same.yaml: data.path"
    )
    source_classes: ClassList = Field(
        [0, 1, 2, 3, 4], description="pretrain on these: label numbers or class names, or all"
    )
    target_classes: ClassList = Field([5, 6, 7, 8, 9], description="fine-tune on these, or all")
    image_size: int | None = Field(
        None, ge=8, le=1024, description="side in pixels to bring images to; null: the source's size"
    )
    test_fraction: Real = Field(
        0.2, gt=0, lt=1, description="share of pictures split off, by seed, for testing if no test part is given"
    )
    unreadable: Literal["stop", "skip"] = Field("stop", description="at a picture that cannot be read")
    validation_fraction: Real = Field(
        0.0, ge=0, lt=1, description="share of the training images held out for the curves; 0: curves on test images"
    )
    source_per_class: int | None = Field(None, ge=1, description="training images kept per source class; null: all")
    target_per_class: int | None = Field(None, ge=1, description="training images kept per target class; null: all")


class Network(Section):
    """The network's layers."""

    backbone: Backbone | None = Field(None, description="network of keras.applications under fc1; null: conv1, ...")
    weights: str = Field(
        "data/raw/random.yaml", min_length=1, description="of the backbone: imagenet.yaml, a pointer, .keras or .h5"
    )
    conv_filters: list[Units] = Field([32, 64], min_length=1, description="filters of conv1, conv2, ...")
    dense_units: list[Units] = Field([128, 64], description="units of fc1, fc2, ...")
    dropout: Real = Field(0.2, ge=0, lt=1, description="rate after pooling and after each dense layer")
    rescale: bool = Field(
        False, description="false: raw 0-255 pixels; true: standardised in the model; not for a backbone"
    )

    @property
    def layers_with_weights(self) -> list[str]:
        """The names that `trainable` chooses from if there is no backbone."""
        convs = [f"conv{i}" for i, _ in enumerate(self.conv_filters, 1)]
        return [*convs, *[f"fc{i}" for i, _ in enumerate(self.dense_units, 1)], "output"]


class Recipe(Section):
    """How to train."""

    epochs: int = Field(10, ge=0, le=1_000_000, description="passes over the training images; 0: features as they come")
    batch_size: int = Field(64, ge=1, le=1_000_000, description="images per training step")
    optimizer: Literal["rmsprop", "adam", "sgd"] = Field("rmsprop", description="Keras's defaults")
    learning_rate: Real = Field(0.001, gt=0, description="of the optimizer; the peak of a schedule")
    schedule: Literal["constant", "cosine"] = Field("constant", description="cosine: a fifth warm-up, then to 0")
    augment: list[Literal["flip", "flip_vertical", "shift", "rotation", "zoom", "contrast"]] = Field(
        [], description="random changes of the training images: flip, flip_vertical, shift, rotation, zoom, contrast"
    )
    class_weight: Literal["balanced"] | None = Field(
        None, description="balanced: each class counts the same in the training loss"
    )
    patience: int | None = Field(
        None, ge=1, description="epochs without a lower val_loss before it stops, the best kept; null: never"
    )


class FinetuneRecipe(Recipe):
    """How to train further, and which layers."""

    epochs: int = Field(10, ge=1, le=1_000_000, description="passes over the training images")
    trainable: list[str] = Field(min_length=1, description="layers to train, or backbone; others are frozen")
    head: Literal["keep", "reset"] = Field("keep", description="start from the source's output layer, or a new one")


class Settings(Section):
    """All of ``params.yaml``; a further section named ``finetune_...`` is a further fine-tuning stage."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, FinetuneRecipe]

    seed: int = Field(1, ge=0, lt=2**32, description="of every random number: subsets, weights, shuffling, dropout")
    threads: int | None = Field(None, ge=1, le=1024, description="of TensorFlow; null: one per core")
    devices: int = Field(1, ge=1, le=1024, description="GPUs that share every batch; 1: one device, GPU or CPU")
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = Field(
        "float32", description="mixed ones with model.rescale or a backbone"
    )
    image_memory: int = Field(
        8_000_000_000, ge=2**24, description="bytes of images, or features on disk, shuffled freely; beyond, in blocks"
    )
    feature_memory: int = Field(
        4_000_000_000, ge=0, description="bytes of frozen layers' outputs kept in memory; beyond, in a temporary file"
    )
    feature_disk: int = Field(
        20_000_000_000, ge=0, description="bytes of that file at most; beyond, frozen layers run in every epoch"
    )
    data: Data = Data()
    model: Network = Network()
    pretrain: Recipe = Recipe()
    finetune_output: FinetuneRecipe = FinetuneRecipe(trainable=["output"])
    finetune_fc: FinetuneRecipe = FinetuneRecipe(trainable=["fc2", "output"])

    @model_validator(mode="before")
    @classmethod
    def _only_finetune_may_be_added(cls, sections: Any) -> Any:
        for name in sections if isinstance(sections, dict) else ():
            if name not in cls.model_fields and not str(name).startswith("finetune_"):
                raise ValueError(f"{name}: unknown key, expected {', '.join(cls.model_fields)} or a finetune_… section")
        return sections

    @model_validator(mode="after")
    def _fits_together(self) -> "Settings":
        if self.precision != "float32" and not self.model.rescale and not self.model.backbone:
            wanted = "expected 'float32', or model.rescale=true: this network does not learn from raw pixels in 16 bits"
            raise ValueError(f"precision: was {self.precision!r}, {wanted}")
        layers, random = self.model.layers_with_weights, Network.model_fields["weights"].default
        if not self.model.backbone and self.model.weights != random:
            was = shown(self.model.weights)
            raise ValueError(f"model.weights: was {was}, expected {random!r}, or a model.backbone that they are for")
        sizes = {"all" if c == ["all"] else len(c) for c in (self.data.source_classes, self.data.target_classes)}
        for name, recipe in {"pretrain": self.pretrain, **self.finetune_stages}.items():
            if recipe.batch_size % self.devices:
                wanted = f"expected a multiple of devices, {self.devices}"
                raise ValueError(f"{name}.batch_size: was {recipe.batch_size}, {wanted}")
            if recipe.patience and not self.data.validation_fraction:
                wanted = "expected null, or data.validation_fraction=0.1: test images must not choose the epoch"
                raise ValueError(f"{name}.patience: was {recipe.patience}, {wanted}")
        for name, recipe in self.finetune_stages.items():
            was = f"{name}.trainable: was {shown(recipe.trainable)}, expected"
            unknown = set(recipe.trainable) - set(layers) and not self.model.backbone  # which is asked when it is there
            if unknown or len(set(recipe.trainable)) < len(recipe.trainable):
                raise ValueError(f"{was} some of {shown(layers)}, each once")
            if recipe.head == "reset" and "output" not in recipe.trainable:
                raise ValueError(f"{was} 'output' in it: head is 'reset'")
            if recipe.head == "keep" and (len(sizes) > 1 or "all" in sizes):
                resets = " ".join(f"-S {n}.head=reset" for n, r in self.finetune_stages.items() if r.head == "keep")
                why = "data.source_classes and data.target_classes are not equally many"
                raise ValueError(f"{name}.head: was 'keep', expected 'reset', as {why}: {resets}")
        return self

    @property
    def finetune_stages(self) -> dict[str, FinetuneRecipe]:
        """The fine-tuning sections by stage name."""
        named = {"finetune_output": self.finetune_output, "finetune_fc": self.finetune_fc}
        return named | (self.__pydantic_extra__ or {})

    def finetune(self, stage: str) -> FinetuneRecipe:
        """The section of one fine-tuning stage; raises `UserError` if ``params.yaml`` has none of that name."""
        if stage not in self.finetune_stages:
            raise UserError(f"{PARAMS}: {stage}: missing, expected a section of that name")
        return self.finetune_stages[stage]

    def by_key(self) -> dict[str, Any]:
        """Every setting by its dotted key, as DVC names it."""
        return dict(leaves(self.model_dump()))


def leaves(values: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every setting in a nested dictionary."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def problems(error: ValidationError, see: str = "docs/settings.md") -> str:
    """All that pydantic found, in one line: key, what it was, what was expected; `see` says which keys there are."""
    found = []
    errors = error.errors()
    for e in errors[:MOST_PROBLEMS]:
        key = ".".join(str(part) for part in e["loc"] if not str(part).startswith(("constrained-", "function-")))
        key = key.removesuffix(".int").removesuffix(".str") or "the file"
        message = re.sub("^(Input|String|List) should (be|have)", "expected", e["msg"].removeprefix("Value error, "))
        message = re.sub(r" after validation, not \d+", "", message)
        message = re.sub(r"a valid dictionary or instance of \w+", "keys and values", message)
        if e["type"] == "value_error":
            found.append(f"{key}: {message}" if e["loc"] and not message.startswith(key) else message)
        elif e["type"] in ("missing", "extra_forbidden"):
            found.append(f"{key}: {'missing' if e['type'] == 'missing' else 'unknown key'}; see {see}")
        else:
            found.append(f"{key}: was {shown(e['input'])}, {message}")
    more = len(errors) - len(found)
    return one_line("; ".join([*found, f"and {more} more"] if more else found))


class _Loader(yaml.SafeLoader):
    """Refuses aliases: a few lines of them can expand beyond any memory."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"line {line}: an alias (*), expected plain values")
        return super().compose_node(parent, index)


def read_yaml(path: Path, expected: str) -> Any:
    """What a small YAML file holds; raises `UserError` with one line if it is missing, large, or not plain YAML."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not a regular file, expected {expected}")
        if (size := path.stat().st_size) > LARGEST_YAML:
            raise UserError(f"{path}: {size} bytes, expected {expected}: at most {LARGEST_YAML} bytes")
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}, expected {expected}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or no such date or number
        raise UserError(f"{path}: no valid YAML: {one_line(error)}") from None


def load(path: Path = PARAMS) -> Settings:
    """Read and check all settings; none may be left out, as DVC records what the file says.

    Raises `UserError`, naming key, value and what is allowed, if the file is missing, not YAML, or does not fit.
    """
    raw = read_yaml(path, "the settings; run in the repository's folder")
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{path}: {problems(error)}") from None
    given = dict(leaves(raw))
    for key, value in settings.by_key().items():
        if key not in given:
            raise UserError(f"{path}: {key}: missing, expected a value; the default is {json.dumps(value)}")
    return settings
