"""Compare the models and write it up: ``python -m stages.report pretrain finetune_output finetune_fc``.

The first argument is the stage trained on the source classes, the others were fine-tuned from it.
"""

import json
import sys

from stages import settings
from stages.reporting import figures, page, results
from stages.shared.errors import UserError
from stages.shared.files import REPORTS, write_whole
from stages.shared.program import program


def write_figures(found: results.Results) -> None:
    """Draw every figure into ``reports/figures``."""
    wrong = {r.stage: (r.predictions.iloc[r.mistakes], r.half.test.x[r.mistakes], r.heat) for r in found.all}
    drawn = {
        "curves": figures.curves({r.stage: r.history for r in found.all}, f"{found.source.half.curves_part} images"),
        "per_class": figures.per_class([{r.stage: r.per_class for r in rs} for rs in ([found.source], found.tuned)]),
        "calibration": figures.calibration({r.stage: r.reliability for r in found.all}),
        "mistakes": figures.mistakes(wrong),
    }
    for r in found.all:
        drawn[f"confusion_{r.stage}"] = figures.confusion(r.stage, r.predictions, r.half.class_names)
    for name, figure in drawn.items():
        figures.save(figure, REPORTS / "figures" / f"{name}.png")


@program
def main() -> None:
    """Read what the training stages left behind; write metrics, summary, figures and page."""
    if len(sys.argv) < 3:
        raise UserError("expected the names of the pretraining stage and of the fine-tuning stages as arguments")
    params = settings.load()
    found = results.read(sys.argv[1], sys.argv[2:])
    write_figures(found)
    metrics = {r.stage: r.metrics for r in found.all}
    write_whole(REPORTS / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode())
    write_whole(REPORTS / "summary.csv", found.summary.to_csv(index=False).encode())
    markdown = page.render(found, params)
    write_whole(REPORTS / "report.md", markdown.encode())
    write_whole(REPORTS / "report.html", page.html(markdown, found).encode())
    print(found.summary.to_string(index=False))
    print(f"see {REPORTS / 'report.html'}")


if __name__ == "__main__":
    main()
