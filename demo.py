"""Try the trained models on a page that only this computer can open: ``python demo.py``."""

import stages.training  # noqa: F401, first: it checks that the packages are installed, and configures Keras

# isort: split
import argparse
import functools
import os
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageOps

from predict import choose_threshold, classify
from stages.shared.errors import UserError, one_line
from stages.shared.files import MODELS
from stages.shared.program import program
from stages.training.gradcam import heat_maps
from stages.training.model_files import load_trained

ACCURACY = 0.95  # a model that cannot answer with this accuracy says "none of these"
HOW = "Drop a picture, or take one with the camera."
load = functools.cache(load_trained)


@program
def main() -> None:
    """Serve the page until Ctrl-C; it deletes pictures after an hour."""
    argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0]).parse_args()
    if not find_spec("gradio"):
        raise UserError("gradio: missing, expected the extra `demo`; type `make demo`, which installs it")
    if not (names := sorted(path.stem for path in MODELS.glob("*.keras"))):
        raise UserError(f"{MODELS}: no models, expected those that `dvc repro` trains, or `dvc pull` fetches")
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    import gradio as gr

    picture = gr.Image(sources=["upload", "webcam", "clipboard"], label="Picture", height=320)
    picture.preprocess = lambda file: file and file.path  # Gradio's fails without saying why
    heat = gr.Image(label="Red: the regions behind the answer", buttons=[], height=320)
    shown = [gr.Markdown(HOW), gr.Label(num_top_classes=5, show_heading=False, label="Probabilities"), heat]
    model = gr.Dropdown(names, value=names[0], label="Model")
    options = {"live": True, "clear_btn": None, "flagging_mode": "never", "delete_cache": (3600, 3600)}
    page = gr.Interface(answer, [model, picture], shown, title="Try a model", **options)
    options = {"server_name": "127.0.0.1", "share": False, "mcp_server": False, "enable_monitoring": False}
    options |= {"prevent_thread_lock": True, "quiet": True, "footer_links": [], "max_file_size": "200mb"}
    print("open", page.launch(**options)[1], "and stop with Ctrl-C", flush=True)
    page.block_thread()


def answer(name: str, path: str | None) -> tuple[str, dict[str, float] | None, Image.Image | None]:
    """Classify a picture; returns a sentence in Markdown, each class's probability, and the heat map on the picture."""
    if not path:
        return HOW, None, None
    try:
        trained = load(MODELS / f"{name}.keras")
        _, p, images, failed = classify(trained, [Path(path)], page=True)
    except (UserError, MemoryError) as error:
        failed = [one_line(error)]
    if failed:
        return f"This cannot be classified: {failed[0].removeprefix(f'{path}: ')}", None, None
    image, best, threshold = images[0], int(p.argmax()), 0.0
    with suppress(UserError):  # the model's file has no thresholds, or none reaches the accuracy
        threshold = choose_threshold(trained, ACCURACY)
    sentence = f"## {trained.class_names[best]}, {p.max():.1%}"
    if p.max() < threshold:
        sentence = f"## none of these\nThe likeliest class is below the threshold of {threshold:.1%}."
    heat = Image.fromarray(heat_maps(trained.model, image[None], np.array([best]))[0]).resize(image.shape[1::-1])
    coloured = 127.5 * colormaps["jet"](np.asarray(heat))[..., :3]
    overlay = Image.fromarray((coloured + image.mean(axis=-1, keepdims=True) / 2).astype(np.uint8))
    return sentence, dict(zip(trained.class_names, p[0].tolist(), strict=True)), ImageOps.contain(overlay, (320, 320))


if __name__ == "__main__":
    main()
