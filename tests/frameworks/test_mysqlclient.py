"""If mysqlclient is installed too, it is not affected: Django uses it for the aliases that choose it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pymysql
import pytest

pytest.importorskip("django")
MySQLdb = pytest.importorskip("MySQLdb")
if MySQLdb is pymysql:
    pytest.skip("mysqlclient is not installed", allow_module_level=True)

from django_site import databases, set_up, settings_for

set_up()

from django.db import DataError, IntegrityError, OperationalError, ProgrammingError, transaction
from shop.models import Item

import pymysqlpool

if TYPE_CHECKING:
    from server import Server


def test_both_in_one_process(server: Server, database: str) -> None:
    """One alias on mysqlclient and one on the pool: each has its own driver, types and errors."""
    with databases(
        default=settings_for(server, database), other=settings_for(server, database, "django.db.backends.mysql")
    ) as connections:
        for number, alias in enumerate(["default", "other"]):
            with transaction.atomic(using=alias):
                Item.objects.using(alias).create(name=f"it's {number}", due="01:02:03", facts={"a": [number]})
        for alias in ("default", "other"):
            found = list(Item.objects.using(alias).order_by("name").values_list("name", "due", "facts"))
            assert [(name, str(due), facts) for name, due, facts in found] == [
                ("it's 0", "01:02:03", {"a": [0]}),
                ("it's 1", "01:02:03", {"a": [1]}),
            ]
        assert isinstance(connections["default"].connection, pymysqlpool.Connection)
        assert isinstance(connections["other"].connection, MySQLdb.connections.Connection)


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("select ~0 + 1", IntegrityError),
        ("insert into shop_item (name, price, facts) values (null, 1, '{}')", IntegrityError),
        ("select nothing", OperationalError),
        ("selec", ProgrammingError),
        ("insert into shop_item (name, price, facts) values ('a', 99999999999, '{}')", DataError),
    ],
)
def test_errors_of_both(statement: str, error: type[Exception], server: Server, database: str) -> None:
    """The same statement gives the same Django error on both, each with its own driver's as the cause."""
    with databases(
        default=settings_for(server, database), other=settings_for(server, database, "django.db.backends.mysql")
    ) as connections:
        for alias, driver in (("default", pymysql), ("other", MySQLdb)):
            with connections[alias].cursor() as cursor, pytest.raises(error) as caught:
                cursor.execute(statement)
            # Django drops the cause of an integrity error that the driver classifies differently.
            assert isinstance(caught.value.__cause__ or caught.value.__context__, driver.Error)


def test_it_is_left_alone() -> None:
    """`MySQLdb` in `sys.modules` is mysqlclient, with nothing of PyMySQL's in it."""
    assert sys.modules["MySQLdb"] is MySQLdb
    assert [name for name in sys.modules if name.startswith("MySQLdb.")]
    for name, module in sys.modules.items():
        assert not (name.startswith("MySQLdb") and module.__name__.startswith("pymysql")), name
