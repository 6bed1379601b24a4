"""`python -m muxfer`: the same as the command."""

from muxfer.cli import main

main()
