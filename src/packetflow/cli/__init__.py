"""The command line: arguments in, calls out."""

from packetflow.cli.main import main

__all__ = ["main"]
