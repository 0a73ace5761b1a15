"""Kill the server with this data folder, and remove the folder, when the process that started the server has ended."""

from __future__ import annotations

import shutil
import sys


def main(folder: str) -> None:
    """Wait for the end of standard input; any input before that means that there is nothing to do."""
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
