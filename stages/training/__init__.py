"""Model, feature cache, input pipeline, training and evaluation.

Importing this imports Keras with TensorFlow, and nothing from the user's keras.json or variables but the folder of
downloads: KERAS_MAX_EPOCHS=1 would train one epoch where params.yaml says ten.
"""

import os
import sys
import tempfile
from pathlib import Path

_users = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("KERAS_")}
os.environ |= {"KERAS_BACKEND": "tensorflow", "KERAS_HOME": os.devnull}
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Keras imports these, if they are installed, for functions that no stage uses: a quarter of its start.
_unused = {"matplotlib", "sklearn"} - sys.modules.keys()
sys.modules |= dict.fromkeys(_unused)  # type: ignore[arg-type]

# TensorFlow prints on standard error how it was built and that there is no GPU, whatever the log level
# (tensorflow#100442). Where there is one, its error may help the reader.
with tempfile.TemporaryFile() as _unread:
    _stderr = os.dup(2)
    os.dup2(_unread.fileno(), 2)
    try:
        import keras
        import tensorflow as tf

        if not Path("/dev/nvidiactl").exists() and not Path("/dev/dxg").exists():
            tf.config.list_physical_devices("GPU")
        tf.get_logger().setLevel("ERROR")  # it warns of retracing
    finally:
        for _name in _unused:
            del sys.modules[_name]
        os.dup2(_stderr, 2)
        os.close(_stderr)
os.environ["KERAS_HOME"] = keras.src.backend.config._KERAS_DIR = _users.get("KERAS_HOME", str(Path.home() / ".keras"))
