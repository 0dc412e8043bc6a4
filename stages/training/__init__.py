"""Model, feature cache, input pipeline, training and evaluation.

Importing this imports Keras, with TensorFlow whatever a user's keras.json says.
"""

import gc
import os
import tempfile
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# TensorFlow prints on standard error how it was built and that there is no GPU, whatever the log level
# (tensorflow#100442). Where there is one, its error may help the reader.
with tempfile.TemporaryFile() as _unread:
    _stderr = os.dup(2)
    os.dup2(_unread.fileno(), 2)
    gc.disable()  # saves half a second of 2.6: the collector would walk objects that stay, again and again
    try:
        import keras  # noqa: F401
        import tensorflow as tf

        if not Path("/dev/nvidiactl").exists() and not Path("/dev/dxg").exists():
            tf.config.list_physical_devices("GPU")
        gc.freeze()  # nor do later collections walk them
    finally:
        gc.enable()
        os.dup2(_stderr, 2)
        os.close(_stderr)
