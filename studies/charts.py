"""The charts of a study's page."""

from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from stages.reporting.figures import COLORS, plain_numbers
from studies.plan import Plan

MARKERS = "os^vDP"


def _panels(plan: Plan, xlabel: str) -> tuple[Figure, dict[str, tuple[Axes, dict]]]:
    """A panel for each way to train, all to one scale; returns each model's panel, and its line's style and label.

    Colours and markers say where the weights come from.
    """
    origins = dict.fromkeys(origin for of_way in plan.models.values() for origin in of_way)
    looks = zip(origins, cycle(COLORS), cycle(MARKERS), strict=False)
    styles = {origin: {"label": origin, "color": color, "marker": marker, "ms": 5} for origin, color, marker in looks}
    figure, axes = plt.subplots(
        1, len(plan.models), figsize=(1 + 2.8 * len(plan.models), 4.5), layout="constrained", sharey=True, squeeze=False
    )
    panels = dict(zip(plan.models, axes[0], strict=True))
    for way, ax in panels.items():
        ax.set_title(way, fontsize=10)
        ax.set_xscale("log")
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("test accuracy")
    figure.supxlabel(xlabel, fontsize=10)
    return figure, {f"{way}, {o}": (panels[way], styles[o]) for way, of_way in plan.models.items() for o in of_way}


def _legend(figure: Figure) -> None:
    """Each label once."""
    handles = [ax.get_legend_handles_labels() for ax in figure.axes]
    by_label = {label: handle for of_axes in handles for handle, label in zip(*of_axes, strict=True)}
    figure.legend(by_label.values(), by_label, loc="outside upper center", ncols=len(by_label), fontsize=9)


def accuracy_by_images(plan: Plan, summary: pd.DataFrame) -> Figure:
    """Mean test accuracy by number of training images, with its 95% interval; `summary` as `analysis.summary`'s."""
    images = list(plan.images_per_class)
    figure, models = _panels(plan, "training images per target class")
    for model, (ax, style) in models.items():
        if model in summary.index:
            rows = summary.loc[model]
            errors = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
            beside = rows.index * 1.02 ** len(ax.containers)  # not on top of those that are drawn
            ax.errorbar(beside, rows["mean"], errors, capsize=2, elinewidth=1, **style)
            ax.fill_between(beside, rows["low"], rows["high"], color=style["color"], alpha=0.15, lw=0)
        ax.set_xticks(images, [str(n) for n in images])
        ax.set_xlim(min(images) / 1.2, max(images) * 1.2)  # of a single number of images Matplotlib finds none
        ax.xaxis.set_minor_locator(NullLocator())
    _legend(figure)
    return figure


def accuracy_by_time(plan: Plan, table: pd.DataFrame) -> Figure:
    """Test accuracy against seconds of training, including pretraining: every run, and a line through the means."""
    figure, models = _panels(plan, "seconds of training, including pretraining")
    for model, (ax, style) in models.items():
        rows = table[table["model"] == model]
        if len(rows):
            means = rows.groupby("images", sort=False)[["seconds", "accuracy"]].mean()
            ax.plot(means["seconds"], means["accuracy"], **style)
            ax.scatter(rows["seconds"], rows["accuracy"], s=6, color=style["color"], alpha=0.4)
        plain_numbers(ax.xaxis)
    _legend(figure)
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
