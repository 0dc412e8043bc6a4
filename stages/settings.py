"""Every setting once: type, range, default (the notebook's) and one line of help; and the checks of ``params.yaml``."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from stages.shared.errors import MISSING, UNKNOWN_KEY, SettingError, describe_problem, problems, short_repr
from stages.shared.yaml_files import read_yaml

PARAMS = Path("params.yaml")
RANDOM_WEIGHTS = "data/raw/random.yaml"
PRETRAINED = "models/pretrain.keras"
MAX_SIDE = 1024  # pixels of an image

Text = Annotated[str, Field(min_length=1)]
Real = Annotated[float, Field(allow_inf_nan=False)]
Classes = Annotated[
    Annotated[list[Annotated[int, Field(ge=0)] | Text], Field(min_length=2), Tag("list")]
    | Annotated[Literal["auto", "all"], Tag("word")],
    Discriminator(lambda value: "word" if isinstance(value, str) else "list"),
]
Backbone = Literal[
    "MobileNetV2", "MobileNetV3Small", "MobileNetV3Large", "EfficientNetV2B0", "EfficientNetV2S", "EfficientNetV2M",
    "ResNet50V2", "ConvNeXtTiny", "file",
]  # fmt: skip
Augmentation = Literal[
    "flip", "flip_vertical", "shift", "rotation", "zoom", "contrast", "colour", "erasing", "rand_augment", "mixup",
    "cutmix",
]  # fmt: skip
Fit = Literal["crop", "pad", "stretch"]
Precision = Literal["float32", "mixed_bfloat16", "mixed_float16"]
Units = Annotated[int, Field(ge=1, le=65_536)]  # of a layer


class Section(BaseModel):
    """A section of a settings file: unknown keys are refused, types are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Data(Section):
    """The images, and how they are split."""

    path: Text = Field("data/raw/cifar10.yaml", description="arrays (.npz), a folder of pictures, or a pointer (.yaml)")
    target_path: Text = Field("data/raw/same.yaml", description="the target task's dataset; same.yaml: data.path")
    source_classes: Classes = Field("auto", description="pretrain on these; auto: all, of one dataset the first half")
    target_classes: Classes = Field("auto", description="fine-tune on these; auto: all, of one dataset the rest")
    image_size: int | None = Field(None, ge=8, le=MAX_SIDE, description="resize to this side; null: the source's size")
    fit: Fit = Field("crop", description="how pictures that are not square are resized")
    test_fraction: Real = Field(0.2, gt=0, lt=1, description="fraction for testing if the dataset has no test split")
    groups: Text | None = Field(None, description="regular expression: images with equal (...) stay in one split")
    unreadable: Literal["stop", "skip"] = Field("stop", description="what to do with an unreadable picture")
    validation_fraction: Real = Field(0.0, ge=0, lt=1, description="held-out training images; 0: curves on test images")
    source_per_class: int | None = Field(None, ge=1, description="training images per source class; null: all")
    target_per_class: int | None = Field(None, ge=1, description="training images per target class; null: all")


class Model(Section):
    """The network's layers."""

    backbone: Backbone | None = Field(
        None, description="network of keras.applications as the base; file: the model of weights; null: conv1, ..."
    )
    weights: Text = Field(RANDOM_WEIGHTS, description="the backbone's first: imagenet.yaml, a pointer, .keras or .h5")
    pooling: Literal["avg", "max"] = Field("avg", description="of the backbone's last maps")
    conv_filters: list[Units] = Field([32, 64], min_length=1, description="filters of conv1, conv2, ...")
    dense_units: list[Units] = Field([128, 64], description="units of fc1, fc2, ...")
    dropout: Real = Field(0.2, ge=0, lt=1, description="dropout rate after pooling and after each dense layer")
    rescale: bool = Field(False, description="standardise pixels inside the model; not for a backbone")

    @property
    def layer_names(self) -> list[str]:
        """Name the layers with weights, which `trainable` chooses from if there is no backbone."""
        convs = [f"conv{i}" for i, _ in enumerate(self.conv_filters, 1)]
        return [*convs, *[f"fc{i}" for i, _ in enumerate(self.dense_units, 1)], "output"]


class Recipe(Section):
    """How to train."""

    epochs: int = Field(10, ge=0, le=1_000_000, description="passes over the training images; 0: keep initial weights")
    batch_size: int = Field(64, ge=1, le=1_000_000, description="images per training step")
    optimizer: Literal["rmsprop", "adam", "adamw", "sgd"] = Field("rmsprop", description="with Keras's defaults")
    learning_rate: Real = Field(0.001, gt=0, description="learning rate; with a schedule, its peak")
    base_learning_rate: Real = Field(1.0, gt=0, le=1, description="factor of that for layers below the first fc")
    weight_decay: Real | None = Field(None, ge=0, lt=1, description="null: the optimizer's default")
    clip_norm: Real | None = Field(None, gt=0, description="largest norm of all gradients together; null: any")
    label_smoothing: Real = Field(0.0, ge=0, lt=1, description="share of a label given to all classes alike")
    schedule: Literal["constant", "cosine"] = Field("constant", description="cosine: a fifth warm-up, then decay to 0")
    augment: list[Augmentation] = Field([], description=f"of training images: {', '.join(get_args(Augmentation))}")
    class_weight: Literal["balanced"] | None = Field(None, description="balanced: classes weigh the same in the loss")
    patience: int | None = Field(None, ge=1, description="early stopping: epochs without improvement; null: off")
    monitor: Literal["val_loss", "val_accuracy"] = Field("val_loss", description="for early stopping")


class FinetuneRecipe(Recipe):
    """How to fine-tune, and which layers."""

    start: Text = Field(PRETRAINED, description="the model to start from, a .keras file")
    epochs: int = Field(10, ge=1, le=1_000_000, description="passes over the training images")
    trainable: list[str] = Field(min_length=1, description="layers to train, or backbone; all others are frozen")
    head: Literal["auto", "keep", "reset"] = Field(
        "auto", description="keep the output layer, or reset it; auto: kept for the other half of a dataset"
    )
    control: bool = Field(True, description="train the same from random weights, too: what is the transfer worth?")


class Settings(Section):
    """All of ``params.yaml``; a further section named ``finetune_...`` is a further fine-tuning stage."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, FinetuneRecipe]

    seed: int = Field(1, ge=0, lt=2**32, description="seed of all random numbers: subsets, weights, order, dropout")
    threads: int | None = Field(None, ge=1, le=1024, description="TensorFlow's threads; null: one per core")
    precision: Precision = Field("float32", description="mixed precision needs model.rescale or a backbone")
    data: Data = Data()
    model: Model = Model()
    pretrain: Recipe = Recipe()
    finetune_output: FinetuneRecipe = FinetuneRecipe(trainable=["output"])
    finetune_fc: FinetuneRecipe = FinetuneRecipe(trainable=["fc2", "output"])

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_sections(cls, sections: Any) -> Any:
        for name in sections if isinstance(sections, dict) else ():
            if name not in cls.model_fields and not str(name).startswith("finetune_"):
                raise SettingError(str(name), UNKNOWN_KEY, f"{', '.join(cls.model_fields)} or a finetune_… section")
        return sections

    @model_validator(mode="after")
    def _check_combinations(self) -> "Settings":
        if self.precision != "float32" and not self.model.rescale and not self.model.backbone:
            expected = "'float32', or model.rescale=true: this network does not learn from raw pixels in 16 bits"
            raise SettingError("precision", self.precision, expected)
        if not self.model.backbone and self.model.weights != RANDOM_WEIGHTS:
            expected = f"{RANDOM_WEIGHTS!r}, or a model.backbone with these weights"
            raise SettingError("model.weights", self.model.weights, expected)
        folders = any(Path(path).is_dir() for path in (self.data.path, self.data.target_path))  # may have such a split
        for name, recipe in {"pretrain": self.pretrain, **self.finetune_stages}.items():
            if recipe.patience and not self.data.validation_fraction and not folders:
                expected = "null, or data.validation_fraction=0.1: test images must not choose the epoch"
                raise SettingError(f"{name}.patience", recipe.patience, expected)
        layers = self.model.layer_names
        classes = self.data.source_classes, self.data.target_classes
        auto, listed = classes == ("auto", "auto"), not any(isinstance(chosen, str) for chosen in classes)
        for name, tuning in self.finetune_stages.items():
            # With a backbone the layers are known once it is built.
            unknown = not self.model.backbone and not set(tuning.trainable) <= set(layers)
            if unknown or len(set(tuning.trainable)) < len(tuning.trainable):
                raise SettingError(f"{name}.trainable", tuning.trainable, f"some of {short_repr(layers)}, each once")
            if tuning.head == "reset" and "output" not in tuning.trainable:
                raise SettingError(f"{name}.trainable", tuning.trainable, "'output' in it: head is 'reset'")
            if tuning.head == "keep" and not auto and not (listed and len(classes[0]) == len(classes[1])):
                why = "data.source_classes and data.target_classes are not equally many"
                raise SettingError(f"{name}.head", "keep", f"'auto' or 'reset', as {why}")
        return self

    @property
    def finetune_stages(self) -> dict[str, FinetuneRecipe]:
        """Return the fine-tuning sections by stage name."""
        named = {"finetune_output": self.finetune_output, "finetune_fc": self.finetune_fc}
        return named | (self.__pydantic_extra__ or {})

    def finetune(self, stage: str) -> FinetuneRecipe:
        """Return the section of one fine-tuning stage; raises `SettingError` if there is none of that name."""
        if stage not in self.finetune_stages:
            raise SettingError(stage, MISSING, "a section of that name")
        return self.finetune_stages[stage]

    def by_key(self) -> dict[str, Any]:
        """Return every setting by its dotted key, as DVC names it."""
        return dict(leaves(self.model_dump()))


def leaves(values: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every setting in a nested dictionary."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def check(values: Any) -> Settings:
    """Check nested settings; raises `SettingError` with key, value and the values allowed."""
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first, *others = problems(error, "docs/settings.md")
        raise SettingError(*first, more="".join(f"; {describe_problem(*other)}" for other in others)) from None


def load(path: Path = PARAMS) -> Settings:
    """Read and check all settings; none may be left out, as DVC records what the file says.

    Raises `UserError` if the file is missing or no YAML, `SettingError` for an invalid setting.
    """
    values = read_yaml(path, "the settings; run in the repository's folder")
    settings = check(values)
    given = dict(leaves(values))
    for key, default in settings.by_key().items():
        if key not in given:
            raise SettingError(key, MISSING, f"a value; the default is {json.dumps(default)}")
    return settings
