"""KILL QUERY may hit any command, including those that the pool itself sends; `storm.py` does it for longer."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from storm import Storm

if TYPE_CHECKING:
    from server import Server


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_kill_query_storm(server: Server, database: str, caplog: pytest.LogCaptureFixture) -> None:
    """While KILL QUERY hits the pool's sessions no rolled-back row is committed, and no confirmed one is lost."""
    caplog.set_level(logging.ERROR, "pymysqlpool")  # the writes that close() discards are discarded on purpose
    storm = Storm(server.connect_kwargs, database)
    storm.run(1500, seed=1)
    assert storm.broken == []
    assert storm.counts["confirmed"] > 100
    assert storm.counts["undone"] > 100
    assert storm.counts["strikes"] > 100
