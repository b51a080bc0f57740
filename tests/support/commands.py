"""The `tbkd` command, called in this process."""

from pathlib import Path

from typer.testing import CliRunner, Result

from tbkd_utils import cli


def run(*arguments: str | Path, width: int = 200) -> Result:
    """Calls the command in this process, in a window of some width."""
    cli.console.width = width
    return CliRunner(env={"NO_COLOR": "1"}).invoke(cli.app, [str(one) for one in arguments])


def good(*arguments: str | Path, **options) -> str:
    """The output of a call that succeeds."""
    result = run(*arguments, **options)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output
