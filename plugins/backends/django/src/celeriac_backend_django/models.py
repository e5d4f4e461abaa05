"""The models of results, on the tables that users of django-celery-results have."""

from __future__ import annotations

from typing import ClassVar

from django.db import models

from celeriac import states

STATUS_CHOICES = [(state, state) for state in sorted(states.ALL_STATES)]


class TaskResult(models.Model):
    """One task's state. `result`, `meta`, `task_args` and `task_kwargs` are texts of the result serializer's; base64 if
    that makes bytes."""

    task_id = models.CharField(max_length=255, unique=True, verbose_name="task id")
    periodic_task_name = models.CharField(max_length=255, null=True, verbose_name="periodic task")
    task_name = models.CharField(max_length=255, null=True, verbose_name="task")
    task_args = models.TextField(null=True, verbose_name="positional arguments")
    task_kwargs = models.TextField(null=True, verbose_name="named arguments")
    status = models.CharField(max_length=50, default=states.PENDING, choices=STATUS_CHOICES, verbose_name="state")
    worker = models.CharField(max_length=100, null=True, default=None, verbose_name="worker")
    content_type = models.CharField(max_length=128, verbose_name="content type of the result")
    content_encoding = models.CharField(max_length=64, verbose_name="encoding of the result")
    result = models.TextField(null=True, default=None, editable=False, verbose_name="result")
    date_created = models.DateTimeField(auto_now_add=True, verbose_name="first heard of")
    date_started = models.DateTimeField(null=True, default=None, verbose_name="started")
    date_done = models.DateTimeField(auto_now=True, verbose_name="last changed")
    traceback = models.TextField(blank=True, null=True, verbose_name="traceback")
    meta = models.TextField(null=True, default=None, editable=False, verbose_name="more")

    class Meta:
        app_label = "django_celery_results"
        ordering: ClassVar = ["-date_done"]
        verbose_name = "task result"
        verbose_name_plural = "task results"
        indexes: ClassVar = [
            models.Index(fields=["task_name"], name="django_cele_task_na_08aec9_idx"),
            models.Index(fields=["status"], name="django_cele_status_9b6201_idx"),
            models.Index(fields=["worker"], name="django_cele_worker_d54dd8_idx"),
            models.Index(fields=["date_created"], name="django_cele_date_cr_f04a50_idx"),
            models.Index(fields=["date_done"], name="django_cele_date_do_f59aad_idx"),
            models.Index(fields=["periodic_task_name"], name="django_cele_periodi_1993cf_idx"),
        ]

    def __str__(self) -> str:
        return f"<Task: {self.task_id} ({self.status})>"


class ChordCounter(models.Model):
    """What django-celery-results counts chords with: celeriac joins those that it finds here, and begins none."""

    group_id = models.CharField(max_length=255, unique=True, verbose_name="group id")
    sub_tasks = models.TextField(verbose_name="tasks of the header")
    count = models.PositiveIntegerField(verbose_name="how many are still to come")

    class Meta:
        app_label = "django_celery_results"

    def __str__(self) -> str:
        return f"<Chord: {self.group_id}, {self.count} to come>"


class GroupResult(models.Model):
    """A group that was saved."""

    group_id = models.CharField(max_length=255, unique=True, verbose_name="group id")
    date_created = models.DateTimeField(auto_now_add=True, verbose_name="first saved")
    date_done = models.DateTimeField(auto_now=True, verbose_name="last saved")
    content_type = models.CharField(max_length=128, verbose_name="content type of the members")
    content_encoding = models.CharField(max_length=64, verbose_name="encoding of the members")
    result = models.TextField(null=True, default=None, editable=False, verbose_name="members")

    class Meta:
        app_label = "django_celery_results"
        ordering: ClassVar = ["-date_done"]
        verbose_name = "group result"
        verbose_name_plural = "group results"
        indexes: ClassVar = [
            models.Index(fields=["date_created"], name="django_cele_date_cr_bd6c1d_idx"),
            models.Index(fields=["date_done"], name="django_cele_date_do_caae0e_idx"),
        ]

    def __str__(self) -> str:
        return f"<Group: {self.group_id}>"


class JoinedChord(models.Model):
    """A chord that celeriac joins; times are unix seconds of the database's clock."""

    id = models.BigAutoField(primary_key=True)
    chord_key = models.CharField(max_length=255, unique=True, verbose_name="key")
    group_id = models.TextField(verbose_name="group id, as JSON")
    size = models.PositiveIntegerField(null=True, default=None, verbose_name="how many parts are expected")
    body = models.BinaryField(null=True, default=None, verbose_name="what is called at the end")
    patience = models.FloatField(null=True, default=None, verbose_name="seconds without news after which it has failed")
    overdue = models.FloatField(null=True, default=None, db_index=True, verbose_name="when it has failed")
    token = models.CharField(max_length=32, default="", verbose_name="claim")
    claimed = models.FloatField(default=0.0, verbose_name="end of the claim")
    done = models.BooleanField(default=False, verbose_name="ended")
    expires = models.FloatField(null=True, default=None, db_index=True, verbose_name="when it is forgotten")

    class Meta:
        app_label = "django_celery_results"
        db_table = "celeriac_joined_chord"

    def __str__(self) -> str:
        return f"<Chord: {self.group_id}>"


class JoinedPart(models.Model):
    """A part that has come, of a chord that has not ended."""

    id = models.BigAutoField(primary_key=True)
    chord_key = models.CharField(max_length=255, verbose_name="key of the chord")
    task_key = models.CharField(max_length=255, verbose_name="task id")
    place = models.BigIntegerField(verbose_name="place among the parts")
    data = models.BinaryField(verbose_name="what it gave")

    class Meta:
        app_label = "django_celery_results"
        db_table = "celeriac_joined_part"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["chord_key", "task_key", "place"], name="celeriac_joined_part_once")
        ]

    def __str__(self) -> str:
        return f"<Part: {self.task_key}>"


class StateSpace(models.Model):
    """A space of shared state, and the version of its latest write."""

    space = models.CharField(max_length=255, primary_key=True, verbose_name="name")
    version = models.BigIntegerField(verbose_name="version")

    class Meta:
        app_label = "django_celery_results"
        db_table = "celeriac_state_space"

    def __str__(self) -> str:
        return f"<Space: {self.space}>"


class StateEntry(models.Model):
    """An entry of shared state; `expires` is unix seconds of the database's clock."""

    id = models.BigAutoField(primary_key=True)
    space = models.ForeignKey(StateSpace, models.CASCADE, related_name="entries", verbose_name="space")
    entry_key = models.CharField(max_length=255, verbose_name="key")
    name = models.TextField(verbose_name="the whole key, as JSON")
    version = models.BigIntegerField(verbose_name="version")
    expires = models.FloatField(null=True, default=None, db_index=True, verbose_name="when it is gone")
    value = models.BinaryField(verbose_name="value")

    class Meta:
        app_label = "django_celery_results"
        db_table = "celeriac_state_entry"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["space", "entry_key"], name="celeriac_state_entry_once")
        ]

    def __str__(self) -> str:
        return f"<Entry: {self.name}>"
