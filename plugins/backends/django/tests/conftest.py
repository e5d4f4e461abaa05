"""A Django project for the tests of this folder; where it has its database, each test says."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import django
import pymysql
import pytest
from django.conf import settings
from django.contrib import admin
from django.core.management import call_command
from django.db import connections
from django.urls import path

if not settings.configured:
    settings.configure(
        SECRET_KEY="of tests",
        INSTALLED_APPS=[
            "django.contrib.admin",
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.messages",
            "django.contrib.sessions",
            "celeriac_backend_django",
        ],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        CACHES={
            "default": {
                "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
                "OPTIONS": {"MAX_ENTRIES": 10_000},
            },
            "none": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"},
        },
        ROOT_URLCONF="django_urls_of_tests",
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {"context_processors": ["django.contrib.auth.context_processors.auth"]},
            }
        ],
        USE_TZ=True,
    )
    django.setup()
    urls = ModuleType("django_urls_of_tests")
    urls.urlpatterns = [path("admin/", admin.site.urls)]  # type: ignore[attr-defined]
    sys.modules[urls.__name__] = urls

UseDatabase = Callable[[str], None]


def use(url: str) -> None:
    """Make this the project's database, and connect to it anew."""
    parts = urlsplit(url)
    engine = {"sqlite": "sqlite3", "postgresql": "postgresql", "mysql": "mysql"}[parts.scheme]
    if engine == "mysql":
        pymysql.install_as_MySQLdb()
    place: dict[str, Any] = {"ENGINE": f"django.db.backends.{engine}", "NAME": parts.path[1:]}
    if parts.hostname:
        place |= {"HOST": parts.hostname, "PORT": str(parts.port), "USER": parts.username}
    else:
        place["OPTIONS"] = {"timeout": 20}
    connections.close_all()
    connections.settings = connections.configure_settings({"default": place})
    for alias in list(connections):
        if hasattr(connections._connections, alias):
            delattr(connections._connections, alias)


@pytest.fixture(scope="module")
def use_database() -> Iterator[UseDatabase]:
    """Makes a URL the project's database for the tests of this module."""
    yield use
    connections.close_all()


@pytest.fixture(scope="module")
def migrated(use_database: UseDatabase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the tables."""
    file = tmp_path_factory.mktemp("migrated") / "db.sqlite3"
    use_database(f"sqlite:///{file}")
    call_command("migrate", verbosity=0)
    connections.close_all()
    return file


@pytest.fixture
def project(use_database: UseDatabase, migrated: Path, tmp_path: Path) -> Path:
    """A project with a migrated SQLite file of its own; returns the file."""
    file = tmp_path / "db.sqlite3"
    shutil.copyfile(migrated, file)
    use_database(f"sqlite:///{file}")
    return file
