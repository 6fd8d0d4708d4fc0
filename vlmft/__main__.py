"""python -m vlmft does what the vlmft command does."""

from vlmft.run.cli import main

main()
