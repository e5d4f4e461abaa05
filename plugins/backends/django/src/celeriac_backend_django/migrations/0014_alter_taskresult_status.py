"""Brings the tables of results to their present form, whatever made them.

The app's label is django-celery-results' own, and this migration has the name of its last one. A database of its
newest version is therefore up to date already, and nothing runs. An older one, or a fresh one, gets here what it
lacks: tables, columns, indices. The names of the earlier migrations are recorded too, so that the way back to
django-celery-results is open.
"""

from __future__ import annotations

from typing import Any

from django.db import migrations, models
from django.db.migrations.recorder import MigrationRecorder

from celeriac_backend_django import models as current

LABEL = "django_celery_results"
BEFORE = (
    "0001_initial",
    "0002_add_task_name_args_kwargs",
    "0003_auto_20181106_1101",
    "0004_auto_20190516_0412",
    "0005_taskresult_worker",
    "0006_taskresult_date_created",
    "0007_remove_taskresult_hidden",
    "0008_chordcounter",
    "0009_groupresult",
    "0010_remove_duplicate_indices",
    "0011_taskresult_periodic_task_name",
    "0012_taskresult_date_started",
    "0013_taskresult_django_cele_periodi_1993cf_idx",
)
MODELS = ("TaskResult", "ChordCounter", "GroupResult")


def bring_up_to_date(apps: Any, schema_editor: Any) -> None:
    """Make what is missing, and leave what is there."""
    connection = schema_editor.connection
    with connection.cursor() as cursor:
        tables = set(connection.introspection.table_names(cursor))
    for name in MODELS:
        model = apps.get_model(LABEL, name)
        if model._meta.db_table not in tables:
            schema_editor.create_model(model)
        else:
            _complete(model, schema_editor)
    recorder = MigrationRecorder(connection)
    recorder.ensure_schema()
    for name in BEFORE:
        if not recorder.migration_qs.filter(app=LABEL, name=name).exists():
            recorder.record_applied(LABEL, name)


def _complete(model: Any, schema_editor: Any) -> None:
    """Add the columns and indices that an older version did not have, and let go of the one it had."""
    connection, table = schema_editor.connection, model._meta.db_table
    with connection.cursor() as cursor:
        columns = {column.name for column in connection.introspection.get_table_description(cursor, table)}
    for field in model._meta.local_fields:
        if field.column not in columns:
            _add_column(model, field, schema_editor)
    if "hidden" in columns:  # nobody fills it any more, and it may not be null
        hidden = schema_editor.quote_name("hidden")
        for index in _indexes_of(connection, table, "hidden"):
            schema_editor.execute(schema_editor._delete_index_sql(model, index))
        schema_editor.execute(f"ALTER TABLE {schema_editor.quote_name(table)} DROP COLUMN {hidden}")
    with connection.cursor() as cursor:
        there = connection.introspection.get_constraints(cursor, table)
    for index in model._meta.indexes:
        if index.name not in there:
            schema_editor.add_index(model, index)


def _add_column(model: Any, field: Any, schema_editor: Any) -> None:
    """As nullable, since the rows that are there have no value; of the one that may not be null a near one is known."""
    nullable = field.clone()
    nullable.null = True
    nullable.auto_now_add = False
    nullable.set_attributes_from_name(field.name)
    nullable.model = model
    schema_editor.add_field(model, nullable)
    if field.name == "date_created":
        model.objects.update(date_created=models.F("date_done"))


def _indexes_of(connection: Any, table: str, column: str) -> list[str]:
    with connection.cursor() as cursor:
        found = connection.introspection.get_constraints(cursor, table)
    return [name for name, about in found.items() if about["index"] and about["columns"] == [column]]


def _create(model: Any) -> Any:
    """The state operation that makes this model known. (Whoever changes a model writes its old form down here.)"""
    fields = [(field.name, field.clone()) for field in model._meta.local_fields]
    options = {key: value for key, value in model._meta.original_attrs.items() if key not in ("app_label", "indexes")}
    options["indexes"] = [index.clone() for index in model._meta.indexes]
    return migrations.CreateModel(model.__name__, fields, options)


class Migration(migrations.Migration):
    """See the module."""

    initial = True
    dependencies = ()
    operations = (
        migrations.SeparateDatabaseAndState(state_operations=[_create(getattr(current, name)) for name in MODELS]),
        # In the migration's transaction, where the database can take back what makes tables; MySQL refuses to make any
        # in one.
        migrations.RunPython(bring_up_to_date, migrations.RunPython.noop, atomic=False),
    )
