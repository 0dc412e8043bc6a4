"""Fine-tune a network on the target task: ``python -m stages.finetune finetune_fc``.

The argument names the stage: its section of ``params.yaml``, its model and its folder in ``reports/``.
"""

import sys
from pathlib import Path

from stages import settings
from stages.shared.errors import SettingError, UserError, short_repr
from stages.shared.inputs import refuse_untracked
from stages.shared.program import program
from stages.shared.tasks import read_task
from stages.training import model_files
from stages.training.backbone import batch_normalization
from stages.training.control import random_weights_of, same_weights, train_control
from stages.training.evaluate import evaluate_and_save
from stages.training.fit import fit
from stages.training.freeze import prepare_model
from stages.training.runtime import configure


@program
def main() -> None:
    """Load the network to start from, freeze layers, train the others, evaluate the model and save its outputs."""
    if len(sys.argv) != 2:
        raise UserError("expected one argument, the stage's name: python -m stages.finetune finetune_fc")
    stage = sys.argv[1]
    params = settings.load()
    recipe = params.finetune(stage)
    task, start = read_task("target"), Path(recipe.start)
    refuse_untracked(start)
    classes = model_files.read_class_names(start)
    configure(params)
    model, image = model_files.load(start), task.train.x.shape[1:]
    if model.input_shape[1:] != image:
        raise SettingError(f"{stage}.start", str(start), f"a model of images {image}, not {model.input_shape[1:]}")
    print(f"{stage}: starts from {start}, trained on {short_repr(classes) if classes else 'classes without names'}")
    random = bool(batch_normalization(model)) and same_weights(random_weights_of(model, params.seed), model)
    model = prepare_model(model, classes, task, recipe, stage, random)
    history = fit(model, task, recipe, stage, params)
    control = None
    if recipe.control:
        control = train_control(model_files.load(start), classes, task, recipe, stage, params)
    evaluate_and_save(stage, model, task, history, control)


if __name__ == "__main__":
    main()
