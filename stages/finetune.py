"""Fine-tune the pretrained network on the target task: ``python -m stages.finetune finetune_fc``.

The argument names the stage: its section of ``params.yaml``, its model and its folder in ``reports/``.
"""

import sys

from stages import settings
from stages.shared.errors import UserError
from stages.shared.files import MODELS
from stages.shared.program import program
from stages.shared.tasks import read_task
from stages.training import model_files
from stages.training.control import prepare, train_control
from stages.training.evaluate import evaluate_and_save
from stages.training.fit import fit
from stages.training.runtime import configure, device_scope

PRETRAINED = MODELS / "pretrain.keras"


@program
def main() -> None:
    """Load the pretrained network, freeze layers, train the others, evaluate the model and save its outputs."""
    if len(sys.argv) != 2:
        raise UserError("expected one argument, the stage's name: python -m stages.finetune finetune_fc")
    stage = sys.argv[1]
    params = settings.load()
    recipe = params.finetune(stage)
    task = read_task("target")
    threads = configure(params)
    with device_scope(params.devices):
        model = prepare(model_files.load(PRETRAINED), task, recipe, stage)
        history = fit(model, task, recipe, stage, params)
        control = None
        if recipe.control:
            control = train_control(model_files.load(PRETRAINED), task, recipe, stage, params)
    evaluate_and_save(stage, model, task, history, threads, control)


if __name__ == "__main__":
    main()
