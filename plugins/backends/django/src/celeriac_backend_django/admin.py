"""Results in Django's admin: to look at and to delete, not to write."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin

from celeriac_backend_django.models import GroupResult, TaskResult


class ReadOnlyAdmin(admin.ModelAdmin):
    """Rows are the workers' to write."""

    date_hierarchy = "date_done"

    def has_add_permission(self, request: Any) -> bool:
        return False

    def get_readonly_fields(self, request: Any, obj: Any = None) -> list[str]:
        return [field.name for field in self.opts.local_fields]


@admin.register(TaskResult)
class TaskResultAdmin(ReadOnlyAdmin):
    """The tasks."""

    list_display = ("task_id", "periodic_task_name", "task_name", "date_done", "status", "worker")
    list_filter = ("status", "date_done", "periodic_task_name", "task_name", "worker")
    search_fields = ("task_name", "task_id", "status", "task_args", "task_kwargs")
    fieldsets: ClassVar = (
        (None, {"fields": ("task_id", "task_name", "periodic_task_name", "status", "worker")}),
        ("Call", {"fields": ("task_args", "task_kwargs")}),
        ("Result", {"fields": ("result", "traceback", "date_created", "date_started", "date_done", "meta")}),
        ("Encoding", {"fields": ("content_type", "content_encoding"), "classes": ("collapse",)}),
    )


@admin.register(GroupResult)
class GroupResultAdmin(ReadOnlyAdmin):
    """The groups."""

    list_display = ("group_id", "date_done")
    list_filter = ("date_done",)
    search_fields = ("group_id",)
