"""Does a server that answers from our own export give the answers of the arm `tuned`?

    pip install 'transformers[serving]'
    python benchmarks/server_arm.py RUN_FOLDER --dtype float32

Exports the run merged, starts `transformers serve` on it (one question at a time, as `generate` has it), and evaluates
three arms on the run's test rows: `tuned`, `export` (the exported weights, by this program) and `served`. Prints how
many answers differ between each two, and the first of them.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from itertools import combinations
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARMS = ("tuned", "export", "served")
START_SECONDS = 180
SHOWN = 5


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def started(folder: Path, dtype: str, port: int, log: Path) -> subprocess.Popen[bytes]:
    """`transformers serve`, once it answers. Raises SystemExit where it ends before."""
    command = ["serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", dtype]
    with log.open("wb") as said:
        program = [sys.executable, "-m", "transformers.cli.transformers"]
        process = subprocess.Popen([*program, *command], stdout=said, stderr=said)
    until = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return process
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    process.kill()
    raise SystemExit(f"transformers serve did not start:\n{log.read_text(encoding='utf-8')}")


def answers(folder: Path, arm: str) -> dict[str, dict[str, object]]:
    lines = (folder / "predictions" / f"{arm}.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


def vlmft(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "vlmft", *arguments], cwd=ROOT, env={**os.environ}, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--dtype", default="bfloat16", help="of the exported weights: bfloat16 or float32")
    parser.add_argument("--computes-in", help="what the server computes in; by default the same")
    parser.add_argument("--at-once", type=int, default=1)
    options = parser.parse_args()
    run, port = options.run.resolve(), free_port()
    with tempfile.TemporaryDirectory() as temporary:
        export = Path(temporary) / "export"
        vlmft("export", f"run={run}", f"to={export}", f"dtype={options.dtype}")
        server = started(export, options.computes_in or options.dtype, port, Path(temporary) / "server.log")
        try:
            where = f"base_url: http://127.0.0.1:{port}/v1, model: {export}, at_once: {options.at_once}"
            arms = ("evaluation.arms=[untuned,tuned]", f"adapters.export={export}")
            vlmft("evaluate", f"run={run}", "fresh=true", *arms, f"evaluation.servers.served={{{where}}}")
        finally:
            server.terminate()
            server.wait()
    found = {arm: answers(run / "evaluations" / "test", arm) for arm in ARMS}
    for one, other in combinations(ARMS, 2):
        pairs = {row_id: (row["text"], found[other][row_id]["text"]) for row_id, row in found[one].items()}
        odd = {row_id: texts for row_id, texts in pairs.items() if texts[0] != texts[1]}
        print(f"{one} and {other}: {len(odd)} of {len(pairs)} answers differ")
        for row_id, (first, second) in list(odd.items())[:SHOWN]:
            print(f"  {row_id}: {first!r}, {second!r}")


if __name__ == "__main__":
    main()
