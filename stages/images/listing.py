"""List the pictures of a folder: every file that DVC tracks there."""

import os
import stat
from pathlib import Path

from stages.shared.errors import UserError
from stages.shared.inputs import is_ignored

SYSTEM_FILES = ("Thumbs.db", "desktop.ini")


def list_files(folder: Path) -> list[Path]:
    """List the files below a folder, relative to it; hidden ones and those of the system are left out.

    Raises `UserError` for an entry that would be lost without a word: an empty or unreadable folder, one that is a link
    or has a name that ``.dvcignore`` excludes (DVC looks into neither), and a pipe, socket or device.
    """
    found: list[Path] = []
    for path, folders, names in os.walk(folder, onerror=_refuse_unreadable):
        folders[:] = sorted(name for name in folders if name[0] != "." and name != "__pycache__")
        files = [name for name in names if name not in SYSTEM_FILES and not is_ignored(Path(name))]
        for entry in (Path(path, name) for name in (*folders, *files)):
            if entry.is_dir() and (entry.is_symlink() or is_ignored(Path(entry.name))):
                why = "a link to a folder" if entry.is_symlink() else "excluded by .dvcignore"
                raise UserError(f"{entry}: {why}, which DVC does not look into; expected a folder, under another name")
            if entry.exists() and not entry.is_dir() and not stat.S_ISREG(entry.stat().st_mode):
                raise UserError(f"{entry}: not a regular file, expected a picture")
        if not folders and not files and Path(path) != folder:
            raise UserError(f"{path}: an empty folder, expected pictures, or no such folder")
        found += [Path(path, name).relative_to(folder) for name in files]
    return found


def _refuse_unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: {error.strerror}, expected a folder that can be read")
