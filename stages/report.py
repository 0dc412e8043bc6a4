"""Compare the models and write the report: ``python -m stages.report``."""

import json

from stages import settings
from stages.reporting import figures, page, quality
from stages.reporting.results import Results, read_results
from stages.shared.files import REPORTS, write_atomic
from stages.shared.program import program


def write_figures(results: Results) -> None:
    """Draw every figure."""
    wrong = {r.stage: (r.predictions.iloc[r.mistakes], r.task.test.x[r.mistakes], r.heat) for r in results.all}
    curve_images = f"{results.source.task.curve_split_name} images"
    drawn = {
        "curves": figures.curves({r.stage: r.history for r in results.all}, curve_images),
        "per_class": figures.per_class(
            [{r.stage: r.per_class for r in rs} for rs in ([results.source], results.tuned)]
        ),
        "calibration": figures.calibration(results.all),
    }
    for r in results.all:
        drawn[f"confusion_{r.stage}"] = figures.confusion(r.stage, r.predictions, r.task.class_names)
    for name, figure in drawn.items():
        figures.save(figure, REPORTS / "figures" / f"{name}.png")
    figures.save(
        figures.mistakes(wrong, results.tuned[0].task), REPORTS / "mistakes.png"
    )  # it shows images, which Git must not get


@program
def main() -> None:
    """Read the outputs of `pretrain` and of every fine-tuning section; write metrics, summary, figures and page."""
    params = settings.load()
    results = read_results("pretrain", list(params.finetune_stages))
    write_figures(results)
    checked = quality.check(results)
    metrics, details = ({r.stage: getattr(r, name) for r in results.all} for name in ("metrics", "details"))
    details["data"] = {side: found["details"] for side, found in checked.items()}
    for name, values in (("metrics", metrics), ("details", details)):
        write_atomic(REPORTS / f"{name}.json", (json.dumps(values, indent=2) + "\n").encode())
    write_atomic(REPORTS / "summary.csv", results.summary.to_csv(index=False).encode())
    write_atomic(REPORTS / "report.md", page.render_markdown(results, params, checked).encode())
    write_atomic(REPORTS / "report.html", page.render_html(results, params, checked).encode())
    print(results.summary.to_string(index=False))
    print(f"see {REPORTS / 'report.html'}")


if __name__ == "__main__":
    main()
