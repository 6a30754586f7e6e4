"""What a queued job will run, put into the run folder: code and config of today, whatever is edited meanwhile."""

import shutil
import subprocess
from pathlib import Path

from calm_megatron.config.atomic import write_atomically
from calm_megatron.config.errors import UserError
from calm_megatron.config.files import to_yaml
from calm_megatron.config.schema import RunConfig

PROJECT = Path(__file__).resolve().parents[2]


def take(run: Path, config: RunConfig) -> Path:
    """Copy the project and write the config into `<run>/launches/<number>`, which is made and returned.

    Raises:
        UserError: the run folder cannot be written.
    """
    launches = run / "launches"
    try:
        launches.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(path.name) for path in launches.iterdir() if path.name.isdecimal()), default=0)
        folder = launches / f"{number:04d}"
        folder.mkdir()
        for name in project_files():
            (folder / "code" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, folder / "code" / name)
        write_atomically(folder / "config.yaml", to_yaml(config).encode())
    except OSError as error:
        raise UserError(f"the run folder cannot be written: {error}", str(run), "name another run.directory") from None
    return folder


def project_files() -> list[Path]:
    """The files that a run needs: package and entry points, as they are now, committed or not."""
    package = [
        path
        for path in sorted((PROJECT / "calm_megatron").rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]
    found = [*package, *(PROJECT / name for name in ("pretrain_ae.py", "pretrain_calm.py", "requirements-cpu.txt"))]
    return [path.relative_to(PROJECT) for path in found if path.is_file()]


def revision() -> str:
    """The commit of the project, with a + where files differ from it; unknown without git."""
    git = ["git", "-C", str(PROJECT)]
    found = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if found.returncode:
        return "unknown"
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    return found.stdout.strip() + ("+" if changed.stdout.strip() else "")
