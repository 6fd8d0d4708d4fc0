"""python evaluate.py run=RUN_FOLDER, or model=... data=...: answers on held-out rows, scored and compared."""

from __future__ import annotations

from vlmft.tools.cli import start
from vlmft.tools.evaluate import main

if __name__ == "__main__":
    start("evaluate", main)
