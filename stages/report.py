"""Compare the models and write the report: ``python -m stages.report``."""

import json

from stages import settings
from stages.reporting import figures, page, quality
from stages.reporting.results import Results, read_results
from stages.shared.files import REPORTS, write_atomic
from stages.shared.program import program
from stages.shared.startup import original_repository


def write_figures(results: Results) -> None:
    """Draw every figure."""
    drawn = {
        "figures/curves": figures.curves(results.all),
        "figures/per_class": figures.per_class([[results.source], results.tuned]),
        "figures/calibration": figures.calibration(results.all),
        "mistakes": figures.mistakes(results.all),  # it shows images, which Git must not get
        **{f"figures/confusion_{r.stage}": figures.confusion(r) for r in results.all},
    }
    for name, figure in drawn.items():
        figures.save(figure, REPORTS / f"{name}.png")


@program
def main() -> None:
    """Read the outputs of `pretrain` and of every fine-tuning section; write metrics, summary, figures and page."""
    params = settings.load()
    results = read_results("pretrain", list(params.finetune_stages))
    write_figures(results)
    checked = quality.check(results)
    metrics, details = {r.stage: r.metrics for r in results.all}, {r.stage: r.details for r in results.all}
    details["data"] = {side: found["details"] for side, found in checked.items()}
    for name, values in (("metrics", metrics), ("details", details)):
        write_atomic(REPORTS / f"{name}.json", (json.dumps(values, indent=2) + "\n").encode())
    write_atomic(REPORTS / "summary.csv", results.summary.to_csv(index=False).encode())
    write_atomic(REPORTS / "report.md", page.render_markdown(results, params, checked).encode())
    write_atomic(REPORTS / "report.html", page.render_html(results, params, checked).encode())
    print(results.summary.to_string(index=False))
    print(f"see {REPORTS / 'report.html'}{', after `dvc exp apply NAME`' if original_repository() else ''}")


if __name__ == "__main__":
    main()
