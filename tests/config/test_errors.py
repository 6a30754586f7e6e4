"""What a user sees of an error: one message and an exit code."""

import pytest

from calm_megatron.config.errors import UserError, run_command_line


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


def test_a_programming_error_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command_line(lambda: 1 // 0)
