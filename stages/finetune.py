"""Train chosen layers of the pretrained network on the target classes: ``python -m stages.finetune finetune_fc``.

The argument names the stage and with it the section of ``params.yaml``, the model and the files of the report.
"""

import sys

from stages import settings
from stages.shared.errors import UserError
from stages.shared.files import MODELS
from stages.shared.halves import read_half
from stages.shared.program import program
from stages.training import loop, model_files, network, record


@program
def main() -> None:
    """Load the pretrained network, freeze what is not trained, train the rest, and write what came out."""
    if len(sys.argv) != 2:
        raise UserError("expected one argument, the stage's name: python -m stages.finetune finetune_fc")
    stage = sys.argv[1]
    params = settings.load()
    recipe = params.finetune(stage)
    target = read_half("target")
    threads = loop.set_up(params)
    with loop.on_devices(params.devices):
        model = model_files.load(MODELS / "pretrain.keras")
        if recipe.head == "reset":
            model = network.with_new_output(model, len(target.class_names))
        network.freeze_all_but(model, recipe.trainable, f"{stage}.trainable")
        history, seconds, checkpoint = loop.fit(model, target, recipe, stage, params)
    record.write(stage, model, target, history, seconds, threads)
    checkpoint.remove()


if __name__ == "__main__":
    main()
