"""The command line, one file per command."""

from gpg_vl.cli.program import main as main
