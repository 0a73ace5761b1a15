"""The site's views."""

import os
from typing import Any

from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path

from .models import Item


def two_queries(request: HttpRequest) -> JsonResponse:
    """Run two queries on one connection."""
    with connection.cursor() as cursor:
        cursor.execute("select connection_id()")
        [session] = cursor.fetchone()
    return JsonResponse({"items": Item.objects.count(), "session": session, "process": os.getpid()})


@transaction.atomic
def in_transaction(request: HttpRequest) -> JsonResponse:
    """Run two queries in a transaction."""
    return two_queries(request)


def write_and_fail(request: HttpRequest) -> Any:
    """Write in a transaction, and fail."""
    with transaction.atomic():
        Item.objects.create(name="never")
        return 1 / 0


urlpatterns = [path("", two_queries), path("atomic", in_transaction), path("fail", write_and_fail)]
