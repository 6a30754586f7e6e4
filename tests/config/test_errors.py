"""What a user sees of an error: one message and an exit code."""

import subprocess
import sys
from pathlib import Path

import pytest

from calm_megatron.config.atomic import demand_writable, write_output
from calm_megatron.config.errors import UserError, run_command_line

ROOT = Path(__file__).resolve().parents[2]


def test_the_message_has_only_the_lines_that_say_something() -> None:
    assert str(UserError("it broke")) == "it broke"
    assert str(UserError("it broke", "there", "mend it")) == "it broke\n  where: there\n  to do: mend it"


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (UserError("it broke", "there"), 2, "error: it broke\n  where: there\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_a_command_line_ends_with_one_message(
    raised: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise raised

    with pytest.raises(SystemExit) as caught:
        run_command_line(main)
    captured = capsys.readouterr()
    assert (caught.value.code, captured.err, captured.out) == (code, words, "")


@pytest.mark.parametrize("result", [None, 0, 3])
def test_a_command_line_returns_its_result(result: int | None) -> None:
    with pytest.raises(SystemExit) as caught:
        run_command_line(lambda: result)
    assert caught.value.code == result


@pytest.mark.parametrize("flags", [[], ["-u"]])
def test_a_reader_that_leaves_is_no_error(flags: list[str]) -> None:
    code = (
        "from calm_megatron.config.errors import run_command_line\n"
        "def main():\n    for number in range(100_000): print(number)\n"
        "run_command_line(main)"
    )
    with subprocess.Popen(
        [sys.executable, *flags, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 1)


def test_a_pipe_that_breaks_elsewhere_is_not_hidden() -> None:
    code = (
        "import os\nfrom calm_megatron.config.errors import run_command_line\n"
        "def main():\n    reading, writing = os.pipe()\n    os.close(reading)\n    os.write(writing, b'x')\n"
        "run_command_line(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "BrokenPipeError" in done.stderr


def test_a_programming_error_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command_line(lambda: 1 // 0)


def test_a_file_that_cannot_be_written_is_told_before_the_work_and_after(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(UserError, match="no file that could be written"):
            demand_writable(path)
    for path in (tmp_path / "file" / "x.json", Path("/proc/x.json"), Path("/proc/new/x.json"), tmp_path / ("x" * 300)):
        for write in (demand_writable, lambda path: write_output(path, b"")):
            with pytest.raises(UserError, match="this cannot be written") as caught:
                write(path)
            assert caught.value.where == str(path)
    demand_writable(tmp_path / "new" / "folder" / "x.json")
    demand_writable(tmp_path / "file")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
    write_output(tmp_path / "new" / "x.json", b"{}")
    assert (tmp_path / "new" / "x.json").read_bytes() == b"{}"
