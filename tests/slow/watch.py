"""Run one stage and write down which of the project's files it opens and which settings it reads.

``python watch.py OUT.json stages.finetune finetune_fc``, in the project's folder.
"""

import json
import os
import runpy
import sys
from pathlib import Path

from pydantic import BaseModel

here = Path.cwd().resolve()
opened: dict[str, set[str]] = {"read": set(), "written": set()}
leaves_read: set[str] = set()


def watch_files(event: str, arguments: tuple) -> None:
    """An audit hook: `open` of any kind in this process, C extensions that go through Python's open included."""
    if event == "open" and isinstance(arguments[0], str | bytes):
        path = Path(os.fsdecode(arguments[0])).resolve()
        if path.is_relative_to(here) and "__pycache__" not in path.parts and not path.is_dir():  # a file without a name
            if arguments[2] & (os.O_WRONLY | os.O_RDWR):
                opened["written"].add(path.relative_to(here).as_posix())
            elif path.is_file():
                opened["read"].add(path.relative_to(here).as_posix())
    elif event == "os.remove":
        opened["written"].discard(os.path.relpath(os.fsdecode(arguments[0]), here))
    elif event == "os.link":
        opened["written"].add(os.path.relpath(os.fsdecode(arguments[1]), here))
    elif event == "os.rename":  # written under another name first
        source, target = (Path(os.fsdecode(name)).resolve() for name in arguments[:2])
        if target.is_relative_to(here):
            opened["written"].discard(source.relative_to(here).as_posix())
            opened["written"].add(target.relative_to(here).as_posix())


def watch_settings(settings) -> None:
    """Record every leaf that is read of what `settings.load` returns."""
    dotted: dict[int, str] = {}
    load, read, dump = settings.load, BaseModel.__getattribute__, BaseModel.model_dump

    def name_sections(model: BaseModel, prefix: str = "") -> None:
        dotted[id(model)] = prefix
        for name in (*type(model).model_fields, *(model.model_extra or {})):
            if isinstance(value := getattr(model, name), BaseModel):
                name_sections(value, f"{prefix}{name}.")

    def watched_load(*arguments):
        model = load(*arguments)
        name_sections(model)
        settings.Section.__getattribute__ = watched_read
        settings.Section.model_dump = watched_dump
        return model

    def watched_read(model, name):
        value = read(model, name)
        if id(model) in dotted and name in type(model).model_fields and not isinstance(value, BaseModel):
            leaves_read.add(dotted[id(model)] + name)
        return value

    def watched_dump(model, *arguments, **options):
        values = dump(model, *arguments, **options)
        if id(model) in dotted:  # not the defaults
            leaves_read.update(dotted[id(model)] + key for key, _ in settings.leaves(values))
        return values

    settings.load = watched_load


def main() -> None:
    out, module, *arguments = sys.argv[1:]
    sys.path.insert(0, str(here))
    sys.argv = ["-m", *arguments]  # as Python has it while it starts a stage
    sys.addaudithook(watch_files)
    from stages import settings

    watch_settings(settings)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        imported = {Path(m.__file__).resolve() for m in list(sys.modules.values()) if getattr(m, "__file__", None)}
        code = {path.relative_to(here).as_posix() for path in imported if path.is_relative_to(here / "stages")}
        code |= {path for path in opened["read"] if path.startswith("stages/")}
        seen = {
            "code": sorted(code),
            "read": sorted(opened["read"] - opened["written"] - code - {"params.yaml"}),
            "written": sorted(opened["written"]),
            "params": sorted(leaves_read),
        }
        Path(out).write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
