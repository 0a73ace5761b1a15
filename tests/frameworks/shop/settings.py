"""A small Django site. DATABASE, in JSON, says where its data is."""

import json
import os

DATABASES = {"default": {"ENGINE": "pymysqlpool.django", **json.loads(os.environ.get("DATABASE", "{}"))}}
INSTALLED_APPS = ["shop"]
ROOT_URLCONF = "shop.urls"
MIDDLEWARE: list[str] = []
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ALLOWED_HOSTS = ["*"]
SECRET_KEY = "not secret"  # noqa: S105
STATIC_URL = "static/"
USE_TZ = True
