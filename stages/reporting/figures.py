"""Draw the report's figures."""

from itertools import count, cycle
from pathlib import Path
from typing import get_args

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from stages.predictions import accuracy_by_threshold
from stages.reporting.results import MANY, ModelResult, hardest
from stages.settings import Fit
from stages.shared.files import atomic_file

mpl.use("agg")
mpl.rcParams["text.parse_math"] = False  # a class may be called US$
COLORS = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]
MAX_LABEL = 24  # characters
MIN_LOSS = 1e-3  # drawn; smaller differences do not matter


def save(figure: Figure, path: Path) -> None:
    """Save a figure as PNG; equal figures make equal files."""
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)


def short_labels(names: list[str]) -> list[str]:
    """Shorten class names to `MAX_LABEL` characters."""
    return [name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 1]}…" for name in names]


def plain_numbers(axis: Axis) -> None:
    """Label a logarithmic axis 0.5, 1, 2: Matplotlib's own labels need mathematical text, which is off."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def curves(models: list[ModelResult]) -> Figure:
    """Draw accuracy and loss by epoch: solid for training, dashed for the validation or test images."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for ax, quantity in zip(axes, ("accuracy", "loss"), strict=True):
        for color, r in zip(cycle(COLORS), models, strict=False):
            epochs, label = r.history["epoch"], f"{r.stage}, {r.task.curve_split_name} images"
            ax.plot(epochs, r.history[quantity], color=color, label=f"{r.stage}, training")
            ax.plot(epochs, r.history[f"val_{quantity}"], color=color, label=label, ls="--", marker=".")
        ax.set(xlabel="epoch", ylabel=quantity)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
    axes[0].yaxis.set_major_formatter(PercentFormatter(1))
    losses = pd.concat(r.history for r in models)[["loss", "val_loss"]].to_numpy()
    if losses.max() > 10 * losses.min():  # the first epoch on raw pixels has a loss many times that of the others
        axes[1].set_yscale("log")
        axes[1].set_ylim(bottom=max(MIN_LOSS, axes[1].get_ylim()[0]))
        plain_numbers(axes[1].yaxis)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(models))
    return figure


def confusion(model: ModelResult) -> Figure:
    """Draw a confusion matrix with numbers of test images; of many classes with colours only."""
    names = model.task.class_names
    counts = pd.crosstab(model.predictions["actual"], model.predictions["predicted"])
    counts = counts.reindex(index=names, columns=names, fill_value=0)
    side = 2.2 + 0.62 * len(names) if len(names) <= MANY else 10
    figure, ax = plt.subplots(figsize=(side, side), layout="constrained")
    shares = counts.div(counts.sum(axis=1), axis=0).to_numpy()
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= MANY:
        for (row, column), count in np.ndenumerate(counts.to_numpy()):
            color = "white" if shares[row, column] > 0.5 else "black"
            ax.text(column, row, f"{count}", ha="center", va="center", color=color, fontsize=9)
        ax.set_xticks(range(len(names)), short_labels(names), rotation=45, ha="right")
        ax.set_yticks(range(len(names)), short_labels(names))
    ax.set(xlabel="predicted", ylabel="actual", title=model.stage)
    return figure


def per_class(panels: list[list[ModelResult]]) -> Figure:
    """Draw recall by class with 95% intervals: a panel for models with the same classes, the hardest of many."""
    widths = [1 + len(models) for models in panels]
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 4), layout="constrained", sharey=True, width_ratios=widths)
    colors = cycle(COLORS)
    for ax, models in zip(axes, panels, strict=True):
        width = 0.8 / len(models)
        shown, classes = hardest(models), models[0].task.class_names
        if len(shown) < len(classes):
            ax.set_title(f"the {len(shown)} hardest of {len(classes)} classes")
        for i, r in enumerate(models):
            table = r.per_class.loc[shown]
            x = np.arange(len(table)) - 0.4 + (i + 0.5) * width
            errors = [table["recall"] - table["recall_low"], table["recall_high"] - table["recall"]]
            ax.bar(x, table["recall"], width * 0.95, color=next(colors), label=r.stage)
            ax.errorbar(x, table["recall"], errors, fmt="none", ecolor="black", elinewidth=1, capsize=2)
        rotated = {"rotation": 30, "ha": "right"} if len(shown) <= 12 else {"rotation": 90, "fontsize": 8}
        ax.set_xticks(range(len(shown)), short_labels(shown), **rotated)
        ax.grid(axis="y", alpha=0.3)
    axes[0].set(ylabel="recall on test images", ylim=(0, 1.02))
    axes[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.legend(loc="outside lower center", ncols=sum(map(len, panels)))
    return figure


def calibration(models: list[ModelResult]) -> Figure:
    """Draw a reliability diagram, larger points for more images, and the accuracy on the surest shares of images."""
    figure, (reliability, surest) = plt.subplots(1, 2, figsize=(11, 5.2), layout="constrained")
    reliability.plot([0, 1], [0, 1], color="grey", ls=":", label="perfectly calibrated")
    for color, r in zip(cycle(COLORS), models, strict=False):
        table, curve = r.reliability, accuracy_by_threshold(r.predictions["probability"].to_numpy(), r.correct)
        x, y, sizes = table["probability"], table["accuracy"], 400 * table["images"] / table["images"].sum()
        reliability.plot(x, y, color=color, alpha=0.4)
        reliability.scatter(x, y, sizes, color=color)
        surest.plot(curve["answered"], curve["accuracy"], color=color, label=r.stage)
    reliability.set(xlabel="probability of the predicted class", ylabel="test accuracy", ylim=(0, 1.02))
    surest.set(xlabel="share of test images answered, the surest first", ylabel="test accuracy")
    for ax in (reliability, surest):
        ax.set_xlim(0, 1.02)
        ax.grid(alpha=0.3)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.legend(loc="outside lower center", ncols=len(models) + 1)
    return figure


def mistakes(models: list[ModelResult]) -> Figure:
    """Draw each model's mistakes in two rows: the images, and the same under their heat maps.

    Below, a picture of the target task, resized in each way, if it has one.
    """
    task = models[-1].task
    heights = [3.9] * len(models) + [2.2] * (len(task.resized) > 0)
    figure = plt.figure(figsize=(12, sum(heights)), layout="constrained")
    panels = figure.subfigures(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    if len(task.resized):
        panels[-1].suptitle(f"resized with data.fit={task.fit}", x=0.01, ha="left", fontsize=10, weight="bold")
        for ax, way, pixels in zip(panels[-1].subplots(1, 3), get_args(Fit), task.resized, strict=True):
            ax.imshow(pixels)
            ax.set(xticks=[], yticks=[], xlabel=way)
    columns = max(1, *(len(r.mistakes) for r in models))
    for panel, r in zip(panels, models, strict=False):
        wrong, images = r.predictions.iloc[r.mistakes].to_dict("records"), r.task.test.x[r.mistakes]
        panel.suptitle(r.stage if wrong else f"{r.stage}: no mistakes", x=0.01, ha="left", fontsize=10, weight="bold")
        ax = panel.subplots()  # one for all: a grid of axes takes a second to draw
        height = images.shape[1] / images.shape[2]
        for left, example, image, heat in zip(count(0, 1.08), wrong, images, r.heat, strict=False):
            upper, lower = ((left, left + 1, bottom, bottom + height) for bottom in (height + 0.08, 0))
            pixels = image[..., :3] if image.shape[-1] >= 3 else image[..., 0]
            grey = image[..., :3].mean(axis=-1)  # so that colours below are the heat map's
            ax.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=upper)
            ax.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=lower)
            ax.imshow(heat, cmap="jet", alpha=0.5, interpolation="bilinear", vmin=0, vmax=1, extent=lower)
            confidence = f"{100 * example['probability']:.0f}%"
            name, actual, predicted = short_labels([example[key] for key in ("image", "actual", "predicted")])
            title = f"{name}\n{actual}\npredicted as\n{predicted} ({confidence})"
            ax.text(left + 0.5, 2 * height + 0.12, title, fontsize=7, ha="center", va="bottom")
        ax.set(xlim=(0, 1.08 * columns - 0.08), ylim=(0, 2 * height + 0.52))
        ax.axis("off")
    return figure
