"""The blocks of `.github/recipes.md`, with the settings of the test's own server in place of theirs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from server import Server

ROOT = Path(__file__).parent.parent.parent
TEXT = ROOT.joinpath(".github", "recipes.md").read_text(encoding="utf-8")
CONFIG = 'dict(host="localhost", user="app", password="secret", database="shop")'
FRONT = ""


def blocks(section: str) -> list[str]:
    """The blocks of a section; for an empty name, those before the first heading."""
    sections = re.split(r"^## (.*)\n", TEXT, flags=re.MULTILINE)
    found = dict(zip(["", *sections[1::2]], sections[::2]))
    return re.findall(r"^```python\n(.*?)^```", found[section], re.DOTALL | re.MULTILINE)


def titles() -> list[str]:
    return re.findall(r"^## (.*)$", TEXT, re.MULTILINE)


def front(server: Server, database: str) -> str:
    """The block that all recipes start from."""
    [block] = blocks(FRONT)
    assert CONFIG in block
    return block.replace(CONFIG, repr({**server.connect_kwargs, "database": database}))


def program(server: Server, database: str, *sections: str) -> str:
    """A program: that block, and the first block of each section."""
    return "\n".join([front(server, database), *(blocks(section)[0] for section in sections)])


def run(server: Server, database: str, *sections: str) -> dict[str, Any]:
    """Run it in this process, and return its names. The caller closes its pools."""
    namespace: dict[str, Any] = {"__name__": "recipe"}
    exec(compile(program(server, database, *sections), "recipes.md", "exec", dont_inherit=True), namespace)  # noqa: S102
    return namespace


def environment(folder: Path) -> dict[str, str]:
    """The environment of a program that lies in `folder`."""
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    made = {**os.environ, "PYTHONPATH": path}
    made.pop("DJANGO_SETTINGS_MODULE", None)  # which the tests of Django set, and Celery looks for
    return made
