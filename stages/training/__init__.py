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
    # Saves a third of the import: no search for garbage, of which there is none, and no pyplot, which Keras would load.
    gc.disable()
    sys.modules.setdefault("matplotlib", None)  # type: ignore[arg-type]
    try:
        import keras  # noqa: F401
    finally:
        if sys.modules["matplotlib"] is None:
            del sys.modules["matplotlib"]
        gc.freeze()
        gc.enable()
        os.dup2(_standard_error, 2)
        os.close(_standard_error)
