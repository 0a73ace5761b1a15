"""What was measured, as Markdown, as JSON and as a picture."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from typing import TYPE_CHECKING, Any

import django_view
import pymysql

if TYPE_CHECKING:
    from pathlib import Path

    from common import Setting

NOTE = """\
All figures but the commands and the wait in ms are ratios of two things that ran side by side: medians of many rounds.
The bare LifoQueue holds raw connections and does nothing else: it is the lower bound, and starves threads as others do.
If threads starve, the p99 of the wait says little: a thread that gets nothing has one wait, as long as the round.
"""
PANELS = [
    ("commands", ("on", "off"), "commands on the wire\nfor {borrow, SELECT, return}"),
    ("fairness", ("longest_ms",), "longest wait, ms (logarithmic)\n16 threads on 4 connections, each held 2 ms"),
    ("opening", ("plain", "tls"), "opening one more connection,\nin parts of pymysql.connect()"),
]
LABELS = {"on": "autocommit on", "off": "autocommit off", "plain": "without TLS", "tls": "with TLS"}
OURS, OTHERS = ("#0b6e4f", "#7cc6a4"), ("#8a8f98", "#c9ccd1")


def machine(setting: Setting) -> dict[str, str]:
    """What it was measured on."""
    connection: Any = pymysql.connect(**setting.near)
    server = connection.get_server_info().removeprefix("5.5.5-")  # what MariaDB puts in front for old clients
    connection.close()
    return {
        "Python": platform.python_version(),
        "PyMySQL": importlib.metadata.version("PyMySQL"),
        "server": server,
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "command": "tox -e bench" + " -- --quick" * setting.quick,
    }


def head(titles: dict[str, str]) -> str:
    """The head of the table."""
    return f"| | target | {' | '.join(titles.values())} |\n|---|---|{'---:|' * len(titles)}"


def number(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def row(line: dict[str, Any], titles: dict[str, str]) -> str:
    """One row of the table."""
    cells = [number(line["values"][name]) if name in line["values"] else "-" for name in titles]
    if line["target"]:
        cells[0] = f"**{cells[0]}**" if line["holds"] else f"{cells[0]} (missed)"
    return f"| {line['title']} | {line['target']} | {' | '.join(cells)} |"


def write(
    folder: Path,
    machine: dict[str, str],
    lines: list[dict[str, Any]],
    titles: dict[str, str],
    views: list[dict[str, Any]],
) -> None:
    """Write all three; `views` are the lines of the Django view."""
    facts = ", ".join(f"{name} {value}" for name, value in machine.items() if name != "command")
    table = "\n".join([head(titles), *(row(line, titles) for line in lines)])
    (folder / "benchmarks.md").write_text(
        f"Made by `{machine['command']}`: {facts}.\n\n{table}\n\n{NOTE}"
        + (f"\n{django_view.table(views)}" if views else ""),
        encoding="utf-8",
    )
    data = {"machine": machine, "peers": titles, "figures": lines, django_view.TITLE: views}
    (folder / "benchmarks.json").write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if importlib.util.find_spec("matplotlib"):
        draw(folder / "benchmarks.png", lines, titles)
    else:
        print("no picture: matplotlib is not installed", file=sys.stderr)


def draw(path: Path, lines: list[dict[str, Any]], titles: dict[str, str]) -> None:
    """Draw the most important figures."""
    import matplotlib as mpl  # noqa: PLC0415  a measuring process need not load it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    found = {(line["measure"], line["key"]): line["values"] for line in lines}
    figure, axes = plt.subplots(1, len(PANELS), figsize=(15, 4.2), sharey=True, layout="constrained")
    for axis, (measure, keys, title) in zip(axes, PANELS):
        height = 0.8 / len(keys)
        for position, key in enumerate(keys):
            values = [found[measure, key].get(name, 0) for name in titles]
            places = [y + position * height - 0.4 + height / 2 for y in range(len(titles))]
            colours = [OURS[position], *[OTHERS[position]] * (len(titles) - 1)]
            bars = axis.barh(places, values, height * 0.9, color=colours, label=LABELS.get(key))
            axis.bar_label(bars, [number(value) if value else "-" for value in values], padding=3, fontsize=8)
        if len(keys) > 1:
            axis.legend(fontsize=8, frameon=False, loc="lower right")
        axis.set_title(title, fontsize=10)
        axis.set_yticks(range(len(titles)), titles.values())
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.tick_params(which="both", left=False, bottom=False, labelbottom=False)
        axis.margins(x=0.15)
    axes[0].invert_yaxis()
    axes[1].set_xscale("log")
    axes[1].set_xlim(left=1)
    figure.savefig(path, dpi=110)
    plt.close(figure)
