"""Run one stage and save the project's files that it opens and the settings that it reads.

``python watch.py OUT.json stages.finetune finetune_fc``, in the project's folder.
"""

import json
import os
import runpy
import sys
from pathlib import Path

from pydantic import BaseModel

HERE = Path.cwd().resolve()
read: set[str] = set()
written: set[str] = set()
settings_read: set[str] = set()


def project_file(name: str | bytes | int | None) -> str | None:
    """Return the path of one of the project's files, else None."""
    path = Path(os.fsdecode(name)).resolve() if isinstance(name, str | bytes) else HERE
    inside = path.is_relative_to(HERE) and not path.is_dir() and "__pycache__" not in path.parts
    return path.relative_to(HERE).as_posix() if inside else None


def watch_files(event: str, arguments: tuple) -> None:
    """Audit `open` of every kind, C extensions that use Python's `open` included, and the renames of atomic writes."""
    if event not in ("open", "os.remove", "os.rename") or not (name := project_file(arguments[0])):
        return
    if event != "open":
        written.discard(name)
        written.update(filter(None, [project_file(arguments[1])] if event == "os.rename" else []))
    elif arguments[2] & (os.O_WRONLY | os.O_RDWR):
        written.add(name)
    elif Path(name).is_file():
        read.add(name)


def watch_settings(settings) -> None:
    """Record every setting that is read after `settings.load`."""
    prefixes: dict[int, str] = {}
    load, get = settings.load, BaseModel.__getattribute__

    def watched_load(*arguments):
        model = load(*arguments)
        sections = {name: value for name, value in model if isinstance(value, BaseModel)}
        prefixes.update({id(model): ""} | {id(value): f"{name}." for name, value in sections.items()})
        settings.Section.__getattribute__ = watched_get
        return model

    def watched_get(model, name):
        value, prefix = get(model, name), prefixes.get(id(model))
        if prefix is not None and name == "model_dump":
            settings_read.update(f"{prefix}{key}" for key, _ in settings.leaves(value()))
        elif prefix is not None and name in type(model).model_fields and not isinstance(value, BaseModel):
            settings_read.add(prefix + name)
        return value

    settings.load = watched_load


if __name__ == "__main__":
    out, module, *arguments = sys.argv[1:]
    sys.path.insert(0, str(HERE))
    sys.argv = ["-m", *arguments]  # as Python has it while it starts a stage
    sys.addaudithook(watch_files)
    from stages import settings

    watch_settings(settings)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    imported = [project_file(getattr(module, "__file__", None)) for module in list(sys.modules.values())]
    code = {name for name in (*imported, *read) if name and name.startswith("stages/")}
    data = read - written - code - {"params.yaml", "dvc.yaml"}
    found = {"code": code, "read": data, "written": written, "params": settings_read}
    Path(out).write_text(json.dumps({kind: sorted(names) for kind, names in found.items()}))
