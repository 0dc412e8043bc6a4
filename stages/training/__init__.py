"""Network, features, batches, the training loop, and the record of a training.

Importing this imports Keras, on TensorFlow whatever a user's keras.json says.
"""

import gc
import os
import sys
import tempfile

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# TensorFlow says on standard error how it was built, whatever log level is set (tensorflow#100442).
with tempfile.TemporaryFile() as _unread:
    _standard_error = os.dup(2)
    os.dup2(_unread.fileno(), 2)
    # Saves a third of the import's CPU time. The collector would walk objects that stay, again and again, and Keras
    # would load pyplot for its galleries of images: nothing here draws them, and they do not work after this.
    try:
        gc.disable()
        sys.modules.setdefault("matplotlib", None)  # type: ignore[arg-type]
        import keras  # noqa: F401

        gc.freeze()  # nor do later collections walk them
    finally:
        gc.enable()
        if sys.modules.get("matplotlib") is None:
            sys.modules.pop("matplotlib", None)
        os.dup2(_standard_error, 2)
        os.close(_standard_error)
