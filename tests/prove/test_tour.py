"""The lesson in docs/tour.ipynb: its cells run in order on MNIST; its outputs are kept."""

import json
import shutil
import sys

from repository import ROOT, Repository
from stages.settings import Settings

CELLS = [cell for cell in json.loads((ROOT / "docs/tour.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]


def test_every_cell_runs_after_a_short_run(tmp_path):
    params = Settings().model_dump()
    params["data"]["path"] = "data/raw/mnist.npz"
    params["pretrain"]["epochs"] = params["finetune_output"]["epochs"] = 1
    repo = Repository(tmp_path / "repository", params)
    shutil.copytree(ROOT / "results", repo.path / "results", dirs_exist_ok=True)
    repo.dvc("repro")
    repo.environment["MPLBACKEND"] = "agg"
    cells = ["import os; os.chdir('docs')", *("".join(cell["source"]) for cell in CELLS)]
    assert "trainable weights: 8581" in repo.run(sys.executable, "-c", "\n".join(cells))


def test_outputs_are_kept_and_of_mnist():
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    assert all(cell["outputs"] and "error" not in [o["output_type"] for o in cell["outputs"]] for cell in CELLS)
    assert CELLS[0]["outputs"][0]["text"][0].startswith("source: zero one two three four")
