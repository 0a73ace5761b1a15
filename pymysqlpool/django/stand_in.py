"""PyMySQL in the place of mysqlclient, which Django's own backend imports. To import this module does it."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import pymysql
from django.core.exceptions import ImproperlyConfigured

#: What Django 5.2 and newer ask of mysqlclient, and what the first PyMySQL says that is as new as that.
_NEEDED, _SINCE = (2, 2, 1), "1.1.3"


def stand_in() -> None:
    """Let `import MySQLdb` give PyMySQL, where mysqlclient is not installed or can't be loaded.

    All its submodules are PyMySQL's own: imported anew under another name they would have exceptions of their own.
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
