"""Run stages in forks of a process that has imported their packages: ``python server.py SOCKET``.

This saves every stage the import of TensorFlow, three seconds. The server only imports before it forks, so a fork
behaves like a new process; tests that kill stages or change their environment start real ones.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import sys

PACKAGES = ("jinja2", "keras", "markdown_it", "matplotlib.pyplot", "pandas", "PIL.Image", "pooch", "pydantic",
            "scipy.special", "scipy.stats", "tensorflow", "yaml")  # fmt: skip


def run(request: dict, streams: list[int]) -> None:
    """Become the requested process, as ``python -m`` would start it."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ |= request["environment"]
    module, *arguments = request["arguments"]
    sys.path.insert(0, request["folder"])
    sys.argv = ["-m", *arguments]
    __import__("stages")
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main() -> None:
    os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    sys.path.pop(0)  # no sitecustomize from here
    for package in PACKAGES:
        importlib.import_module(package)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen()
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        client, _ = listener.accept()
        if os.fork():
            client.close()
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        content, streams, *_ = socket.recv_fds(client, 2**20, 3)
        while part := client.recv(2**20):
            content += part
        child = os.fork()
        if not child:
            run(json.loads(content), streams)
            return
        _, status = os.waitpid(child, 0)
        client.send(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)


main()
