"""The charts of a study's page."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from stages.reporting.figures import COLORS, plain_numbers
from studies.plan import Plan

LINES = [
    {"ls": "-", "marker": "o"},
    {"ls": "--", "marker": "o", "mfc": "white"},
    {"ls": ":", "marker": "s"},
    {"ls": "-.", "marker": "^"},
    {"ls": "-", "marker": "D"},
    {"ls": "--", "marker": "v"},
    {"ls": ":", "marker": "P"},
    {"ls": "-.", "marker": "X"},
]


def _look(color: int, line: int) -> dict:
    return {"color": COLORS[color % len(COLORS)], "ms": 5} | LINES[line % len(LINES)]


def style(plan: Plan) -> dict[str, dict]:
    """Each model's line: its colour says what is trained, its dashes and marker in which variant.

    A choice that a question is about has a colour of its own.
    """
    origins = list(dict.fromkeys(origin for of_way in plan.models.values() for origin in of_way))
    chosen = [choice.choose for choice in plan.choices if choice.choose in plan.asked]
    of_choices = {name: _look(i, 0) for i, name in enumerate(chosen, len(plan.models))}
    return of_choices | {
        f"{way}, {origin}": _look(i, origins.index(origin))
        for i, (way, of_way) in enumerate(plan.models.items())
        for origin in of_way
    }


def _axes() -> tuple[Figure, Axes]:
    figure, ax = plt.subplots(figsize=(8.5, 5), layout="constrained")
    ax.set(ylabel="test accuracy")
    ax.set_xscale("log")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.grid(alpha=0.3)
    return figure, ax


def accuracy_by_images(plan: Plan, summary: pd.DataFrame) -> Figure:
    """Mean test accuracy by number of training images, with its 95% interval; `summary` as `analysis.summary`'s."""
    images = list(plan.images_per_class)
    figure, ax = _axes()
    ax.set_xlim(min(images) / 1.2, max(images) * 1.2)  # of a single number of images Matplotlib finds none
    looks = {model: look for model, look in style(plan).items() if model in summary.index}
    shifts = np.ones(len(looks))
    if len(images) == 1:  # side by side instead of on top of each other
        shifts = 1.15 ** np.linspace(-1, 1, len(looks) + 2)[1:-1]
    for (model, of_model), shift in zip(looks.items(), shifts, strict=True):
        rows = summary.loc[model]
        x = rows.index * shift
        errors = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
        ax.errorbar(x, rows["mean"], errors, capsize=2, elinewidth=1, label=model, **of_model)
        ax.fill_between(x, rows["low"], rows["high"], color=of_model["color"], alpha=0.15, lw=0)
    ax.set_xticks(images, [str(n) for n in images])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("training images per target class")
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def of_layers(plan: Plan) -> bool:
    """Whether the plan compares three or more ways of fine-tuning, each with weights of the same origins."""
    origins = [list(of_way) for of_way in plan.models.values()]
    return len(origins) > 2 and all(names == origins[0] for names in origins)


def accuracy_by_layers(plan: Plan, summary: pd.DataFrame) -> Figure:
    """Mean test accuracy by what is trained, with its 95% interval: a panel for each number of images.

    `summary` as `analysis.summary`'s.
    """
    images, origins = list(plan.images_per_class), next(iter(plan.models.values()))
    figure, axes = plt.subplots(
        1, len(images), figsize=(2.5 + 2.5 * len(images), 4.2), layout="constrained", squeeze=False, sharey=True
    )
    for ax, n in zip(axes[0], images, strict=True):
        for i, origin in enumerate(origins):
            rows = summary.reindex([(f"{way}, {origin}", n) for way in plan.models])
            errors = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
            ax.errorbar(range(len(rows)), rows["mean"], errors, capsize=2, elinewidth=1, label=origin, **_look(i, i))
        ax.set_xticks(range(len(plan.models)), list(plan.models), rotation=30, ha="right")
        ax.set_title(f"{n:,} images per class", fontsize=9, loc="left")
        ax.grid(alpha=0.3)
    axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0, 0].set_ylabel("test accuracy")
    axes[0, 0].legend(fontsize=8)
    return figure


def accuracy_by_time(plan: Plan, table: pd.DataFrame) -> Figure:
    """Test accuracy against seconds of training, including pretraining: every run, and a line through the means."""
    figure, ax = _axes()
    for model, of_model in style(plan).items():
        rows = table[table["model"] == model]
        if len(rows):
            means = rows.groupby("images", sort=False)[["seconds", "accuracy"]].mean()
            ax.plot(means["seconds"], means["accuracy"], label=model, **of_model)
            ax.scatter(rows["seconds"], rows["accuracy"], s=6, color=of_model["color"], alpha=0.4)
    plain_numbers(ax.xaxis)
    ax.set_xlabel("seconds of training, including pretraining")
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def gains_by_class(gains: dict[str, pd.DataFrame]) -> Figure:
    """Gain in test accuracy by class: a dot for each seed, a bar for the mean.

    `gains`: a table float (seeds, classes) for each question.
    """
    figure, axes = plt.subplots(
        len(gains), 1, figsize=(8.5, 0.6 + 2.3 * len(gains)), layout="constrained", squeeze=False, sharex=True
    )
    for ax, (question, table) in zip(axes[:, 0], gains.items(), strict=True):
        ax.bar(range(table.shape[1]), 100 * table.mean(), color="lightsteelblue")
        for values in table.to_numpy():
            ax.plot(np.arange(len(values)), 100 * values, "k.", ms=4, alpha=0.6)
        ax.axhline(0, color="black", lw=0.8)
        ax.set_xticks(range(table.shape[1]), table.columns)
        ax.set_ylabel("gain, points")
        ax.set_title(question, fontsize=9, loc="left")
        ax.grid(axis="y", alpha=0.3)
    return figure
