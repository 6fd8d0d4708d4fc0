"""python -m vlmft does what the vlmft command does."""

from vlmft.tools.cli import main

main()
