"""What the machine does to a run: the sentence for it, and what keeps the processes that read rows alive."""

from __future__ import annotations

import errno
import os
import re
import signal
import threading

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a full quota, a file larger than may be."""


def machine_failure(error: Exception) -> str | None:
    """One line for an error that neither the settings nor the code have made; None for any other."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f"no room on the disk ({error}); make some and give the same command again, train.py with resume=true"
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return (
            f"a process that reads rows has died ({error}), most often because the memory was full; give the same "
            "command again, train.py with resume=true, and a lower data.workers: 0 reads in the main process"
        )
    if isinstance(error, RuntimeError) and re.search(r"[Cc]onnection (closed|reset) by peer", str(error)):
        return "another process of this run has ended, and its own line says why; after that, go on with resume=true"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, named here because importing it takes seconds
        return f"out of memory outside training steps ({error}); take a smaller model or a larger device"
    return None


def outlive_signals(worker: int) -> None:
    """For a process that reads rows: it ends when its parent says so, and not by a signal to the whole job.

    Ctrl-C, `timeout` and Slurm signal the children, too, and torch lets those die of it: the run could not finish its
    window. Does nothing where there is no `sigwaitinfo` (macOS, Windows).
    """
    if hasattr(signal, "sigwaitinfo"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
