"""Train chosen layers of the pretrained network on the target classes: ``python -m stages.finetune finetune_fc``.

The argument names the stage and with it the section of ``params.yaml``, the model and the reports' files.
"""

import sys
from pathlib import Path

from stages import network, settings, training
from stages.settings import UserError, stop_on_user_error


@stop_on_user_error
def main() -> None:
    if len(sys.argv) != 2:
        raise UserError("expected one argument, the stage's name: python -m stages.finetune finetune_fc")
    stage = sys.argv[1]
    params = settings.load()
    recipe = params.finetune(stage)
    target = training.read_half(Path("data/prepared/target.npz"))
    threads = training.set_up(params)
    with training.on_devices(params.devices):
        model = network.load(training.MODELS / "pretrain.keras")
        if recipe.head == "reset":
            model = network.with_new_output(model, len(target.class_names))
        network.freeze_all_but(model, recipe.trainable)
        seconds = training.fit(model, target, recipe, stage, params.feature_memory)
    training.finish(model, target, stage, seconds, threads)


if __name__ == "__main__":
    main()
