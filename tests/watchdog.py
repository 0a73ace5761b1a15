"""Kill the server that has this data folder, and remove that, when the process that has started it is gone."""

from __future__ import annotations

import shutil
import sys


def main(folder: str) -> None:
    """Wait for the end of standard input; what comes before that is the word that there is nothing to do."""
    if sys.stdin.read():
        return
    import psutil  # noqa: PLC0415  seldom needed

    option = f"--datadir={folder}/data"  # of the server, and of the program that installs one
    processes = [process for process in psutil.process_iter(["cmdline"]) if option in (process.info["cmdline"] or ())]
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, timeout=10)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
