"""Django in the test process: the site's settings, with the database that a test chooses."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server import Server


def settings_for(server: Server, database: str, engine: str = "pymysqlpool.django", **options: Any) -> dict[str, Any]:
    """An entry of DATABASES."""
    return {
        "ENGINE": engine,
        "HOST": server.host,
        "PORT": server.port,
        "USER": server.user,
        "PASSWORD": server.password,
        "NAME": database,
        **options,
    }


def set_up() -> None:
    """Set Django up, once for a process."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
    import django  # noqa: PLC0415  not where it is not installed

    django.setup()


@contextmanager
def databases(**settings: dict[str, Any]) -> Iterator[Any]:
    """Configure Django with these databases, with the site's tables in the default one, and yield its `connections`."""
    from django.db import connections  # noqa: PLC0415

    before = connections.settings
    drop(connections)
    connections.settings = connections.configure_settings({"default": {}, **settings})
    try:
        if "default" in settings:
            make_tables(connections["default"])
        yield connections
    finally:
        for connection in connections.all(initialized_only=True):
            connection.close()
            if hasattr(connection, "close_pool"):
                connection.close_pool()
        drop(connections)
        connections.settings = before


def drop(connections: Any) -> None:
    """Drop this thread's database wrappers, so that it creates new ones from the settings of that time."""
    for connection in connections.all(initialized_only=True):
        del connections[connection.alias]


def make_tables(connection: Any) -> None:
    from shop.models import Item  # noqa: PLC0415

    with connection.schema_editor() as editor:
        editor.create_model(Item)
    connection.close()


def environment(**settings: dict[str, Any]) -> dict[str, str]:
    """The environment variables of a program of the site."""
    path = os.pathsep.join(filter(None, [*sys.path[:2], os.environ.get("PYTHONPATH"), os.path.dirname(__file__)]))  # noqa: PTH120
    return {
        **os.environ,
        "PYTHONPATH": path,
        "DJANGO_SETTINGS_MODULE": "shop.settings",
        "DATABASE": json.dumps(settings["default"]),
    }
