"""Runs stages in forks of a process that has imported their packages: ``python server.py SOCKET``.

Of the tests' time, most was the import of TensorFlow, three seconds a training. Before it forks it only imports, and
asks for the CPU, so a fork is as good as a new process; tests that kill or change its surroundings start real ones.
"""

import json
import os
import runpy
import signal
import socket
import sys

os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
sys.path.pop(0)  # no sitecustomize from here

import cpuinfo
import jinja2  # noqa: F401
import keras  # noqa: F401
import markdown_it  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import pandas  # noqa: F401
import PIL.Image  # noqa: F401
import pooch  # noqa: F401
import pydantic  # noqa: F401
import scipy.special
import scipy.stats  # noqa: F401
import tensorflow  # noqa: F401
import yaml  # noqa: F401

CPU = cpuinfo.get_cpu_info()  # sleeps for a second
cpuinfo.get_cpu_info = lambda: CPU


def run(request: dict, streams: list[int]) -> None:
    """Be the process that was asked for, as ``python -m`` makes it."""
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
