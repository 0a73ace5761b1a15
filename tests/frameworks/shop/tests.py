"""What Django's own runner runs, on a test database that it makes."""

import threading

import pytest
from django.db import IntegrityError, close_old_connections, connection, transaction
from django.test import LiveServerTestCase, TestCase, TransactionTestCase

from .models import Item


class InTransaction(TestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        Item.objects.create(name="from the class")

    def test_sees_its_class_and_writes(self) -> None:
        Item.objects.create(name="one")
        assert set(Item.objects.values_list("name", flat=True)) == {"from the class", "one"}

    def test_sees_nothing_of_others(self) -> None:
        with pytest.raises(IntegrityError), transaction.atomic():
            Item.objects.create(name="from the class")
        assert Item.objects.count() == 1

    def test_after_commit(self) -> None:
        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            transaction.on_commit(lambda: None)
        assert len(callbacks) == 1


class Flushed(TransactionTestCase):
    def test_commits(self) -> None:
        with transaction.atomic():
            Item.objects.create(name="one")
        found = []

        def look() -> None:
            found.append(Item.objects.count())
            connection.close()

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert found == [1]

    def test_begins_empty(self) -> None:
        assert Item.objects.count() == 0
        close_old_connections()
        assert connection.pool.name == "default"

    def test_after_the_pool_is_closed(self) -> None:
        connection.close()
        connection.close_pool()
        Item.objects.create(name="two")


class Live(LiveServerTestCase):
    def test_serves(self) -> None:
        from urllib.request import urlopen  # noqa: PLC0415

        with urlopen(self.live_server_url) as answer:  # noqa: S310
            assert answer.status == 200
