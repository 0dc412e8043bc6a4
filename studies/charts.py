"""Draw the charts of a study's page."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from stages.reporting.figures import COLORS, plain_numbers
from studies import analysis
from studies.plan import Plan

LINES = list(cycler(ls=["-", "--", ":", "-."] * 2, marker=list("oos^DvPX")))


def draw(plan: Plan, table: pd.DataFrame, gains: dict[str, pd.DataFrame]) -> dict[str, Figure]:
    """Draw all charts of `analysis.results`, by name; `gains` are `analysis.class_gains` by question."""
    summary = analysis.summary(table)
    figures = {
        "accuracy_by_images": accuracy_by_images(plan, summary),
        "accuracy_by_time": accuracy_by_time(plan, table),
    }
    variants = [list(of_way) for of_way in plan.models.values()]
    only_choices = summary.index.unique("model").isin([choice.choose for choice in plan.choices]).all()
    if len(variants) > 2 and all(names == variants[0] for names in variants) and not only_choices:
        figures["accuracy_by_layers"] = accuracy_by_layers(plan, summary)
    if gains:
        figures["class_gains"] = gains_by_class(gains)
    return figures


def _style(color: int, line: int) -> dict:
    rgb, line = COLORS[color % len(COLORS)], line % len(LINES)
    return {"color": rgb, "mfc": "white" if line == 1 else rgb, "ms": 5} | LINES[line]


def styles(plan: Plan) -> dict[str, dict]:
    """Return each model's line style: the colour shows what is trained, dashes and marker in which variant.

    A choice that a question is about has a colour of its own.
    """
    origins = list(dict.fromkeys(origin for of_way in plan.models.values() for origin in of_way))
    choices = [choice.choose for choice in plan.choices if choice.choose in plan.asked]
    return {choice: _style(i, 0) for i, choice in enumerate(choices, len(plan.models))} | {
        f"{way}, {origin}": _style(i, origins.index(origin))
        for i, (way, of_way) in enumerate(plan.models.items())
        for origin in of_way
    }


def _subplots(columns: int = 1, size: tuple[float, float] = (8.5, 5)) -> tuple[Figure, list[Axes]]:
    figure, axes = plt.subplots(1, columns, figsize=size, layout="constrained", squeeze=False, sharey=True)
    for ax in axes[0]:
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("test accuracy")
    return figure, list(axes[0])


def _plot_means(ax: Axes, x: np.ndarray, rows: pd.DataFrame, label: str, style: dict) -> None:
    errors = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
    ax.errorbar(x, rows["mean"], errors, capsize=2, elinewidth=1, label=label, **style)


def accuracy_by_images(plan: Plan, summary: pd.DataFrame) -> Figure:
    """Plot mean test accuracy with its 95% interval by number of images; `summary` is from `analysis.summary`."""
    images = list(plan.images_per_class)
    figure, (ax,) = _subplots()
    ax.set(xscale="log", xlabel="training images per target class")
    ax.set_xlim(min(images) / 1.2, max(images) * 1.2)  # Matplotlib cannot choose limits for a single number
    in_use = {model: style for model, style in styles(plan).items() if model in summary.index}
    shifts = np.ones(len(in_use))
    if len(images) == 1:  # side by side instead of on top of each other
        shifts = 1.15 ** np.linspace(-1, 1, len(in_use) + 2)[1:-1]
    for (model, style), shift in zip(in_use.items(), shifts, strict=True):
        x, rows = np.array(images) * shift, summary.reindex([(model, n) for n in images])
        _plot_means(ax, x, rows, model, style)
        ax.fill_between(x, rows["low"], rows["high"], color=style["color"], alpha=0.15, lw=0)
    ax.set_xticks(images, [str(n) for n in images])
    ax.xaxis.set_minor_locator(NullLocator())
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def accuracy_by_layers(plan: Plan, summary: pd.DataFrame) -> Figure:
    """Plot mean test accuracy with its 95% interval by trained layers, a panel for each number of images."""
    images, origins = list(plan.images_per_class), next(iter(plan.models.values()))
    figure, axes = _subplots(len(images), (2.5 + 2.5 * len(images), 4.2))
    for ax, n in zip(axes, images, strict=True):
        for i, origin in enumerate(origins):
            rows = summary.reindex([(f"{way}, {origin}", n) for way in plan.models])
            _plot_means(ax, np.arange(len(rows)), rows, origin, _style(i, i))
        ax.set_xticks(range(len(plan.models)), list(plan.models), rotation=30, ha="right")
        ax.set_title(f"{n:,} images per class", fontsize=9, loc="left")
    axes[0].legend(fontsize=8)
    return figure


def accuracy_by_time(plan: Plan, table: pd.DataFrame) -> Figure:
    """Plot test accuracy against seconds of training: each run, and a line through each model's means."""
    figure, (ax,) = _subplots()
    ax.set(xscale="log", xlabel="seconds of training, including pretraining")
    for model, style in styles(plan).items():
        rows = table[(table["model"] == model) & table["seconds"].notna()]
        if len(rows):
            means = rows.groupby("images", sort=False)[["seconds", "accuracy"]].mean()
            ax.plot(means["seconds"], means["accuracy"], label=model, **style)
            ax.scatter(rows["seconds"], rows["accuracy"], s=6, color=style["color"], alpha=0.4)
    plain_numbers(ax.xaxis)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def gains_by_class(gains: dict[str, pd.DataFrame]) -> Figure:
    """Plot the gain in test accuracy by class, a panel for each question: a dot for each seed, a bar for the mean."""
    size = (8.5, 0.6 + 2.3 * len(gains))
    figure, axes = plt.subplots(len(gains), 1, figsize=size, layout="constrained", squeeze=False, sharex=True)
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
