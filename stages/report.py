"""Compare the models and write it up: ``python -m stages.report pretrain finetune_output finetune_fc``.

The first argument is the stage trained on the source classes, the others were fine-tuned from it.
"""

import itertools
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from stages import figures, notebook, settings
from stages.arrays import check_sha256, read_npz, read_sealed, write_whole
from stages.settings import Settings, UserError, leaves, stop_on_user_error
from stages.statistics import accuracy_interval, mcnemar

REPORTS = Path("reports")
FIGURES = REPORTS / "figures"


@dataclass(frozen=True)
class Half:
    """What the report needs of one half: numbers of images, the test images uint8 (N, H, W, C), the names."""

    dataset: str
    counts: dict[str, int]
    x_test: np.ndarray
    class_names: list[str]


@dataclass(frozen=True)
class Result:
    """What one training stage left behind."""

    stage: str
    half: Half
    history: pd.DataFrame
    predictions: pd.DataFrame
    record: dict
    train_seconds: float

    @property
    def correct(self) -> np.ndarray:
        """Right or wrong, bool (test images,)."""
        return (self.predictions["actual"] == self.predictions["predicted"]).to_numpy()

    @property
    def train_accuracy(self) -> float | None:
        """The last epoch's running accuracy; None after no epochs."""
        return float(self.history["accuracy"].iloc[-1]) if len(self.history) else None

    @property
    def validation_accuracy(self) -> float | None:
        """The last epoch's accuracy on the images of the curves; None after no epochs."""
        return float(self.history["val_accuracy"].iloc[-1]) if len(self.history) else None

    @property
    def metrics(self) -> dict:
        held_out = {"validation_accuracy": self.validation_accuracy} if self.half.counts["validation"] else {}
        return {
            "trainable_parameters": self.record["trainable_parameters"],
            "train_accuracy": self.train_accuracy,
            **held_out,
            "test_accuracy": self.record["test_accuracy"],
            "test_loss": self.record["test_loss"],
            "train_seconds": self.train_seconds,
        }


def read_half(path: Path) -> Half:
    parts = ("train", "validation", "test")
    arrays = read_npz(path, (*[f"y_{part}" for part in parts], "x_test", "class_names", "dataset"))
    counts = {part: len(arrays[f"y_{part}"]) for part in parts}
    return Half(str(arrays["dataset"][0]), counts, arrays["x_test"], arrays["class_names"].tolist())


def read_result(stage: str, half: Half) -> Result:
    """Read what a training stage left behind; raises `UserError` where that is missing, damaged or of other images."""
    try:
        record = read_sealed(REPORTS / "record" / f"{stage}.json")
        for kind, expected in record["sha256_of"].items():
            path = REPORTS / kind / f"{stage}.csv"
            check_sha256(path, expected, path.read_bytes())
        history = pd.read_csv(REPORTS / "history" / f"{stage}.csv", dtype=float)
        predictions = pd.read_csv(
            REPORTS / "predictions" / f"{stage}.csv", dtype={"actual": str, "predicted": str}, na_filter=False
        )
        seconds = float(read_sealed(REPORTS / "timing" / f"{stage}.json")["train_seconds"])
        result = Result(stage, half, history, predictions, record, seconds)
        _check(result)
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = " ".join(str(error).split())
        raise UserError(f"reports of {stage}: {problem}; expected what `dvc repro {stage}` writes") from None
    return result


def _check(result: Result) -> None:
    """Raise ValueError, KeyError or TypeError where something is missing that the report needs."""
    if result.history[["epoch", "accuracy", "loss", "val_accuracy", "val_loss"]].isna().any(axis=None):
        raise ValueError("a history with gaps")
    result.predictions["probability"].astype(float)
    named = {*result.predictions["actual"], *result.predictions["predicted"]}
    if len(result.predictions) != len(result.half.x_test) or not named <= set(result.half.class_names):
        raise ValueError("predictions of other images")
    if result.record["test_accuracy"] != result.correct.mean():
        raise ValueError("record and predictions differ in their accuracy")
    if not isinstance(result.record["set_up"], dict):
        raise TypeError("no set-up recorded")
    result.metrics["trainable_parameters"] + result.metrics["test_loss"]


def plain(text: str) -> str:
    """Text that Markdown shows as it is, whatever a class is called."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&$!])", r"\\\1", text)


def listing(names: list[str]) -> str:
    return plain(", ".join(names))


def summary(results: list[Result]) -> pd.DataFrame:
    """The notebook's table, its column names."""
    return pd.DataFrame(
        {
            "Model Name": [r.stage for r in results],
            "Number of Trainable Parameters": [r.record["trainable_parameters"] for r in results],
            "Training Time (min)": [round(r.train_seconds / 60, 2) for r in results],
            "Train Accuracy": [r.train_accuracy for r in results],
            "Test Accuracy": [r.record["test_accuracy"] for r in results],
        }
    )


def is_notebooks_data(results: list[Result]) -> bool:
    """Whether these are CIFAR-10's classes in the notebook's halves, all their images."""
    return [(r.half.class_names, r.half.counts["train"], r.half.counts["test"]) for r in results[:3]] == [
        (notebook.SOURCE_CLASSES, 25_000, 5_000),
        (notebook.TARGET_CLASSES, 25_000, 5_000),
        (notebook.TARGET_CLASSES, 25_000, 5_000),
    ]


def results_table(results: list[Result]) -> str:
    """The summary with error bars, and the notebook's published figures where the data are the notebook's."""
    rows = []
    for r in results:
        low, high = accuracy_interval(r.correct)
        row = {
            "model": r.stage,
            "trainable parameters": f"{r.record['trainable_parameters']:,}",
            "training": f"{r.train_seconds:.1f} s",
            "train accuracy": "none" if r.train_accuracy is None else f"{r.train_accuracy:.4f}",
            "test accuracy": f"{r.record['test_accuracy']:.4f}",
            "95 % interval": f"{low:.4f} to {high:.4f}",
            "test loss": f"{r.record['test_loss']:.4f}",
        }
        if is_notebooks_data(results) and r.stage in notebook.PUBLISHED:
            published = notebook.PUBLISHED[r.stage]
            row |= {
                "notebook: parameters": f"{published['parameters']:,}",
                "notebook: training": f"{published['minutes']} min",
                "notebook: train accuracy": f"{published['train_accuracy']:.4f}",
                "notebook: test accuracy": f"{published['test_accuracy']:.4f}",
            }
        rows.append(row)
    return pd.DataFrame(rows).fillna("").to_markdown(index=False, disable_numparse=True)


def per_class_accuracy(result: Result) -> pd.DataFrame:
    """Accuracy with its 95 % interval by class: columns accuracy, low, high, images; index class."""
    actual = result.predictions["actual"].to_numpy()
    rows = {}
    for name in result.half.class_names:
        correct = result.correct[actual == name]
        rows[name] = (correct.mean(), *accuracy_interval(correct), len(correct))
    return pd.DataFrame.from_dict(rows, orient="index", columns=["accuracy", "low", "high", "images"])


def per_class_table(results: list[Result]) -> str:
    """The accuracies by class of every model."""
    rows = [
        {
            "model": r.stage,
            "class": plain(str(name)),
            "accuracy": f"{row.accuracy:.3f}",
            "95 % interval": f"{row.low:.3f} to {row.high:.3f}",
            "test images": f"{row.images:.0f}",
        }
        for r in results
        for name, row in per_class_accuracy(r).iterrows()
    ]
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def answer_parameters(results: list[Result]) -> str:
    whole = results[0].record["trainable_parameters"]
    lines = [
        f"- `{r.stage}`: {r.record['trainable_parameters']:,} "
        f"({100 * r.record['trainable_parameters'] / whole:.3g} % of `{results[0].stage}`'s)"
        for r in results
    ]
    return "\n".join(lines)


def answer_better(results: list[Result], params: Settings) -> str:
    """Pairwise comparison of the fine-tuned models on the same test images."""
    tuned = results[1:]
    pairs = list(itertools.combinations(tuned, 2))
    if not pairs:
        return "There is one fine-tuned model: nothing to compare it with."
    corrected = f" (Bonferroni: each p is to be below {0.05 / len(pairs):.3g}, for {len(pairs)} comparisons)"
    lines = [_compare(first, second, 0.05 / len(pairs), params) for first, second in pairs]
    lines.append(
        "The test is McNemar's, exact, on the same test images" + (corrected if len(pairs) > 1 else "") + ". Test and "
        "intervals speak of these trained models and of which images were drawn to test them. Another seed trains "
        "other models; how far their accuracies move, one run cannot show."
    )
    return "\n\n".join(lines)


def _compare(first: Result, second: Result, level: float, params: Settings) -> str:
    test = mcnemar(first.correct, second.correct)
    better, worse = (first, second) if test.only_first > test.only_second else (second, first)
    counts = (
        f"{max(test.only_first, test.only_second)} test images are right with `{better.stage}` alone, "
        f"{min(test.only_first, test.only_second)} with `{worse.stage}` alone (p = {test.p:.2g})"
    )
    accuracies = f"{better.record['test_accuracy']:.4f} against {worse.record['test_accuracy']:.4f}"
    if test.p >= level:
        return f"`{first.stage}` and `{second.stage}`: **no difference shown**: {accuracies}; {counts}."
    return f"**`{better.stage}` is better than `{worse.stage}`**: {accuracies}; {counts}. {_why(better, worse, params)}"


def _why(better: Result, worse: Result, params: Settings) -> str:
    recipes = [params.finetune(result.stage).model_dump() for result in (better, worse)]
    layers = [set(recipe.pop("trainable")) for recipe in recipes]
    differ = [f"`{key}`" for key, value in recipes[0].items() if value != recipes[1][key]]
    if differ:
        return f"They differ in {', '.join(differ)}, too: these numbers alone do not explain it."
    more_layers = layers[0] > layers[1]
    fits_better = better.train_accuracy > worse.train_accuracy
    weights = f"{better.record['trainable_parameters']:,} weights against {worse.record['trainable_parameters']:,}"
    fit = f"{better.train_accuracy:.4f} against {worse.train_accuracy:.4f}"
    if more_layers and fits_better:
        return (
            f"It may change more ({weights}) and fits its training images better, too ({fit}): that agrees with the "
            "other being held back by what it may not change, not by over-fitting. One run cannot prove a cause."
        )
    return f"It may change {weights}, and its training accuracy is {fit}: these numbers alone do not explain it."


def answer_faster(results: list[Result], params: Settings) -> str:
    """Seconds by epoch and image, and what the stages do not compute."""
    epochs = [len(r.history) for r in results]
    costs = [
        1e6 * r.train_seconds / (n * r.half.counts["train"]) if n else None
        for r, n in zip(results, epochs, strict=True)
    ]
    lines = []
    for r, n, cost in zip(results, epochs, costs, strict=True):
        speed = f"{n} epochs of {r.half.counts['train']:,} images in {r.train_seconds:.1f} s"
        if cost is not None:
            speed += f", {cost:.0f} µs an image and epoch"
            if r is not results[0] and costs[0]:
                speed += f": {cost / costs[0]:.2f} times the cost of `{results[0].stage}`"
        lines.append(f"- `{r.stage}`: {speed}.")
    faster = [r for r, cost in zip(results[1:], costs[1:], strict=True) if costs[0] and cost < costs[0]]
    if faster:
        lines.append(f"\n{_what_is_saved(faster, params)}")
    elif costs[0]:
        lines.append(f"\nIn this run no fine-tuning was faster than `{results[0].stage}`, for each image and epoch.")
    else:
        lines.append(f"\n`{results[0].stage}` ran no epochs: there is no initial training to compare with.")
    lines += _parameters_and_time(results[1:])
    lines.append("\nThese are times of one run on one machine, its other load included.")
    return "\n".join(lines)


def _what_is_saved(faster: list[Result], params: Settings) -> str:
    frozen = {
        r.stage: [
            layer for layer in params.model.layers_with_weights if layer not in params.finetune(r.stage).trainable
        ]
        for r in faster
    }
    listed = "; ".join(f"`{stage}`: {', '.join(layers)}" for stage, layers in frozen.items() if layers)
    if not listed:
        return "No layer is frozen in the faster ones: these numbers do not explain it."
    return (
        f"For the layers that are frozen ({listed}) no weights are updated, and below the first trained layer no "
        "gradients are computed. Frozen layers that come before anything trained or random give the same output for an "
        "image in every epoch, so that they are computed once for each image, not once in each epoch."
    )


def _parameters_and_time(tuned: list[Result]) -> list[str]:
    lines = []
    for first, second in itertools.combinations(tuned, 2):
        if len(first.history) != len(second.history) or first.half is not second.half:
            continue
        few, many = sorted((first, second), key=lambda r: r.record["trainable_parameters"])
        weights = many.record["trainable_parameters"] / few.record["trainable_parameters"]
        seconds = many.train_seconds / few.train_seconds
        if weights > 2 * seconds:
            lines.append(
                f"\n`{many.stage}` trains {weights:.3g} times as many parameters as `{few.stage}` in {seconds:.2f} "
                "times the time: the number of trained parameters does not by itself set the time."
            )
    return lines


def what_was_run(results: list[Result], params: Settings) -> str:
    source, target = results[0].half, results[1].half
    used = dict(leaves(params.model_dump()))
    changed = {key: value for key, value in used.items() if notebook.SETTINGS.get(key) != value}
    lines = [f"- dataset: {plain(source.dataset)} (`{params.data.path}`)"]
    for half, side in ((source, "source"), (target, "target")):
        counts = ", ".join(f"{count:,} {part}" for part, count in half.counts.items())
        lines.append(f"- {side}: {listing(half.class_names)}; images: {counts}")
    lines.append(f"- seed: {params.seed}")
    listed = ", ".join(f"`{key}`: {value}" for key, value in changed.items())
    lines.append(f"- parameters that differ from the notebook's: {listed or 'none'}")
    if not source.counts["validation"]:
        lines.append("- curves: drawn on the test images, as in the notebook; choose no setting by them")
    set_ups = {json.dumps(r.record["set_up"]): r.record["set_up"] for r in results}
    for set_up in set_ups.values():
        stages = [r.stage for r in results if r.record["set_up"] == set_up]
        values = ", ".join(f"{key} {value}" for key, value in set_up.items())
        lines.append(f"- set-up of {', '.join(stages)}: {values}")
    return "\n".join(lines)


def began(first: Result) -> str:
    return "Pretrained on" if len(first.history) else "Random features, not trained on"


def control(results: list[Result]) -> str:
    tuned = results[1].stage
    if not len(results[0].history):
        return (
            f"This run is a control: no epoch of `{results[0].stage}`, so that random features were fine-tuned. The "
            f"difference to the same run with epochs of `{results[0].stage}`, over several seeds, is what the "
            "pretraining was worth."
        )
    return (
        "This run by itself has no control: that fine-tuning reaches an accuracy does not show what the pretraining "
        f"was worth. `dvc exp run -S pretrain.epochs=0` fine-tunes random features instead; the difference of the "
        f"`{tuned}` accuracies, over several seeds, is the answer."
    )


def write_figures(results: list[Result]) -> list[str]:
    """Draw every figure; returns the names of the files."""
    drawn_on = "validation images" if results[0].half.counts["validation"] else "test images"
    drawn = {
        "curves": figures.curves({r.stage: r.history for r in results}, drawn_on),
        "per_class": figures.per_class({r.stage: per_class_accuracy(r) for r in results}),
        "mistakes": figures.mistakes(
            {r.stage: r.half.x_test for r in results}, {r.stage: r.predictions for r in results}
        ),
    }
    for r in results:
        drawn[f"confusion_{r.stage}"] = figures.confusion(r.stage, r.predictions, r.half.class_names)
    for name, figure in drawn.items():
        figures.save(figure, FIGURES / f"{name}.png")
    return list(drawn)


def text(results: list[Result], params: Settings) -> str:
    """The whole report, Markdown."""
    source, target = results[0].half, results[1].half
    confusions = " ".join(f"![confusion matrix of {r.stage}](figures/confusion_{r.stage}.png)" for r in results)
    beside = (
        "\nThe notebook's columns are its published run: one run, another machine, the original images.\n"
        if is_notebooks_data(results)
        else ""
    )
    return f"""# Transfer learning on {plain(source.dataset)}

{began(results[0])} {listing(source.class_names)}; fine-tuned on {listing(target.class_names)}.

{results_table(results)}
{beside}
Test accuracy is measured on {source.counts["test"]:,} test images of the source classes (`{results[0].stage}`) and
{target.counts["test"]:,} of the target classes (the others): the two kinds are different tasks and not to be compared.

![training curves](figures/curves.png)

## How many parameters are trained?

{answer_parameters(results)}

## Which fine-tuning is better, and why?

{answer_better(results, params)}

## Why is fine-tuning faster?

{answer_faster(results, params)}

## What was the transfer worth?

{control(results)}

## Where the models err

![accuracy by class](figures/per_class.png)

{per_class_table(results)}

{confusions}

The mistakes made with most confidence:

![most confident mistakes](figures/mistakes.png)

## What was run

{what_was_run(results, params)}
"""


@stop_on_user_error
def main() -> None:
    if len(sys.argv) < 3:
        raise UserError("expected the names of the pretraining stage and of the fine-tuning stages as arguments")
    params = settings.load()
    source, target = (read_half(Path(f"data/prepared/{half}.npz")) for half in ("source", "target"))
    results = [read_result(stage, source if i == 0 else target) for i, stage in enumerate(sys.argv[1:])]
    write_figures(results)
    metrics = {r.stage: r.metrics for r in results}
    write_whole(REPORTS / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode())
    write_whole(REPORTS / "summary.csv", summary(results).to_csv(index=False).encode())
    write_whole(REPORTS / "report.md", text(results, params).encode())
    print(summary(results).to_string(index=False))
    print(f"see {REPORTS / 'report.md'}")


if __name__ == "__main__":
    main()
