"""``python -m wshub``."""

from wshub.command_line import main

main()
