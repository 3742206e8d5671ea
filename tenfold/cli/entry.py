"""Where the command line starts."""

from __future__ import annotations

from collections.abc import Sequence

from tenfold.cli.arguments import parse
from tenfold.cli.errors import exit_code_of, write_out_what_cannot_be_shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        What follows the command's name; ``sys.argv[1:]`` where it is None.

    Returns
    -------
    int
        0 if all went well, 2 after a mistake of the user (one line on stderr says which), 130 after Ctrl-C.
    """
    write_out_what_cannot_be_shown()
    options = parse(arguments)

    def command() -> int:
        # Imported late: --help and --version should not wait for torch.
        if options.command == "train":
            from tenfold.cli.train import train_command

            return train_command(options)
        if options.command == "check":
            from tenfold.cli.check import check_command

            return check_command(options)
        if options.command == "inspect":
            from tenfold.cli.inspect import inspect_command

            return inspect_command(options)
        if options.command == "compress":
            from tenfold.cli.compress import compress_command

            return compress_command(options)
        if options.command == "sweep":
            from tenfold.cli.sweep import sweep_command

            return sweep_command(options)
        if options.command == "report":
            from tenfold.cli.report import report_command

            return report_command(options)
        from tenfold.cli.compare import compare_command

        return compare_command(options)

    return exit_code_of(command)
