"""``python -m wshub``."""

from wshub.cli.command_line import main

main()
