"""The scripts that are written: of the examples and of a job file, and what is copied into the run folder."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from calm_megatron.config.errors import UserError
from calm_megatron.config.files import load_run
from calm_megatron.launch.examples import FOLDER, NODES, example
from calm_megatron.launch.job import load_job
from calm_megatron.launch.submit import prepare
from tests.small_runs import AR, ROOT, settings

Program = Callable[..., subprocess.CompletedProcess[str]]
CLUSTER = FOLDER / "cluster.yaml"
XL = [ROOT / "examples/models/calm_xl.yaml", ROOT / "examples/machines/gpu_node.yaml"]


@pytest.mark.parametrize("model", NODES)
def test_the_examples_are_what_is_written(model: str) -> None:
    text = (FOLDER / f"{model}.sbatch").read_text()
    assert text == example(model), "run: python -m calm_megatron.launch.examples"
    assert (ROOT / "examples" / "models" / f"{model}.yaml").is_file()
    subprocess.run(["bash", "-n", FOLDER / f"{model}.sbatch"], check=True)


def test_the_tool_shows_a_script_and_writes_nothing(tmp_path: Path, program: Program) -> None:
    run = tmp_path / "run"
    words = [f"run.directory={run}", "data.data_path=x", "slurm.nodes=16", "slurm.account=me", "slurm.time=2-00:00:00"]
    done = program(ROOT / "tools" / "launch.py", CLUSTER, *XL, *words)
    assert done.returncode == 0, done.stderr
    for line in ("--nodes=16", "--account=me", "--time=2-00:00:00", "--signal=B:USR1@300", "--requeue"):
        assert f"#SBATCH {line}\n" in done.stdout
    assert done.stdout.endswith(f"config.yaml run.directory={run}\n") and not run.exists()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("slurm.node=4", "did you mean 'slurm.nodes'?"),
        ("slurm.account=a b", "cannot be 'a b'"),
        ("slurm.time=tomorrow", "cannot be 'tomorrow'"),
        ("slurm.warning_seconds=10", "greater than or equal to 90"),
        ("slurm.gpus_per_node=0", "slurm.ranks_per_node is not set"),
        ("slurm.container_mounts=/data:/data", "slurm.container is not"),
        ("slurm.time='5'", "slurm.warning_seconds = 300 is not below slurm.time = 5"),
        ("slurm.container=image", "slurm.virtual_environment are both set"),
    ],
)
def test_a_wrong_job_is_refused(word: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_job(CLUSTER, [word])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("2:03:04", 7384),
        ("1-02", 93_600),
        ("1-02:03", 93_780),
        ("1-02:03:04", 93_784),
        ("0", 0),
    ],
)
def test_a_time_limit_is_read_as_slurm_reads_it(time: str, seconds: int) -> None:
    assert load_job(CLUSTER, [f"slurm.time={time!r}"]).seconds == seconds


@pytest.mark.parametrize(
    ("words", "said"), [(["--chain", "0", "--submit"], "chain is 0"), (["--chain", "3"], "nothing is submitted")]
)
def test_a_chain_without_jobs_is_refused(words: list[str], said: str, tmp_path: Path, program: Program) -> None:
    run = tmp_path / "run"
    done = program(ROOT / "tools" / "launch.py", CLUSTER, *XL, f"run.directory={run}", "data.data_path=x", *words)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert not run.exists()


def test_a_container_takes_the_place_of_the_environment(tmp_path: Path) -> None:
    config = load_run([], settings(AR, run__directory=tmp_path / "run", data__data_path="x"))
    changes = ["slurm.container=/images/calm.sqsh", "slurm.virtual_environment=null", "slurm.setup=[module load cuda]"]
    text = prepare(load_job(CLUSTER, changes), config).read_text()
    assert "srun --wait=60 --kill-on-bad-exit=0 --container-image=/images/calm.sqsh --container-workdir" in text
    assert "exec python3 -m calm_megatron.launch.supervise" in text and "\nmodule load cuda\n" in text
    assert "activate" not in text


def test_a_queued_run_does_not_change(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = load_run([], settings(AR, run__directory=run, data__data_path="x"))
    first, second = (prepare(load_job(CLUSTER), config) for _ in range(2))
    assert [first.parent.name, second.parent.name] == ["0001", "0002"]
    folder = first.parent
    assert load_run([folder / "config.yaml"]) == config
    copied = folder / "code" / "calm_megatron" / "train" / "loop.py"
    assert copied.read_bytes() == (ROOT / "calm_megatron" / "train" / "loop.py").read_bytes()
    assert (folder / "code" / "pretrain_calm.py").is_file() and not list(folder.rglob("__pycache__"))
    assert f"code={folder / 'code'}\n" in first.read_text()
    assert re.fullmatch(r"unknown|[0-9a-f]{40}\+?", (folder / "revision").read_text().strip())
    subprocess.run(["bash", "-n", first], check=True)
