"""Importing this module makes PyMySQL available as MySQLdb, the module of mysqlclient that Django's backend imports."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import pymysql
from django.core.exceptions import ImproperlyConfigured

#: The version of mysqlclient that Django 5.2 and newer need, and the first PyMySQL that claims to be as new as that.
_NEEDED, _SINCE = (2, 2, 1), "1.1.3"


def stand_in() -> None:
    """Make `import MySQLdb` import PyMySQL, if mysqlclient is not installed or can't be loaded.

    The same holds for all submodules: a second import of them under another name would define the exceptions again.
    """
    try:
        import MySQLdb as found  # noqa: N813, PLC0415
    except ImportError:
        found = pymysql
    if found is not pymysql:
        return
    for module in pkgutil.walk_packages(pymysql.__path__, "pymysql."):
        if not module.name.startswith("pymysql.tests"):
            importlib.import_module(module.name)
    for name in list(sys.modules):
        if name == "pymysql" or name.startswith("pymysql."):
            sys.modules["MySQLdb" + name[len("pymysql") :]] = sys.modules[name]


if pymysql.version_info < _NEEDED:
    raise ImproperlyConfigured(f"pymysqlpool.django needs PyMySQL {_SINCE} or newer; you have {pymysql.VERSION_STRING}")
stand_in()
