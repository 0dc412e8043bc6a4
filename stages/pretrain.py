"""Train the network on the source classes: ``python -m stages.pretrain``."""

from pathlib import Path

from stages import network, settings, training
from stages.settings import stop_on_user_error

STAGE = "pretrain"


@stop_on_user_error
def main() -> None:
    params = settings.load()
    source = training.read_half(Path("data/prepared/source.npz"))
    threads = training.set_up(params)
    with training.on_devices(params.devices):
        model = network.build(source.train.x.shape[1:], len(source.class_names), params.model, source.train.x)
        seconds = training.fit(model, source, params.pretrain, STAGE)
    training.finish(model, source, STAGE, seconds, threads)


if __name__ == "__main__":
    main()
