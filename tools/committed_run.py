"""Say whether the committed run on CIFAR-10 is of the present code and settings: ``python -m tools.committed_run``."""

import hashlib
import json
from pathlib import Path

from stages.settings import PARAMS, leaves
from stages.shared.inputs import is_ignored
from stages.shared.yaml_files import parse_yaml

LOCK = Path("dvc.lock")
NOT_COMPARED = ("data.path",)  # the run may be on the arrays instead of the archive


def md5(path: Path) -> str:
    """Compute DVC's hash of a file or folder."""
    if path.is_file():
        return hashlib.md5(path.read_bytes()).hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file() and not is_ignored(file.relative_to(path)))
    listed = [{"md5": md5(file), "relpath": file.relative_to(path).as_posix()} for file in files]
    return hashlib.md5(json.dumps(listed).encode()).hexdigest() + ".dir"


def differences() -> list[str]:
    """List the code and settings that have changed since the committed run."""
    if not LOCK.exists():
        return [f"{LOCK} (missing)"]
    stages = parse_yaml(LOCK.read_text())["stages"]
    recorded = {dep["path"]: dep["md5"] for stage in stages.values() for dep in stage["deps"]}
    changed = [path for path, known in recorded.items() if path.startswith("stages") and md5(Path(path)) != known]
    now = dict(leaves(parse_yaml(PARAMS.read_text())))
    then: dict = {}
    for stage in stages.values():
        then |= dict(leaves(stage["params"][str(PARAMS)]))
    return changed + [key for key in now if key not in NOT_COMPARED and (key not in then or now[key] != then[key])]


def main() -> None:
    """Print one line if the run is out of date."""
    if found := differences():
        shown = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        print(f"note: the committed run is of older code or settings ({shown}); to renew it: make committed-run")


if __name__ == "__main__":
    main()
