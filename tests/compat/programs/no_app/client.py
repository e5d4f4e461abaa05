"""No app anywhere: the default one, and its settings."""

import json
import pickle

import celery
import celery.exceptions
from celery import current_app, shared_task
from celery.app.task import Task
from celery.result import EagerResult


@shared_task
def add(x, y):
    return x + y


result = add.delay(2, 3)
error = pickle.loads(pickle.dumps(celery.exceptions.Retry("later", when=3)))
answers = {
    "result": result.get(),
    "eager": isinstance(result, EagerResult),
    "task": isinstance(add._get_current_object(), Task),
    "queue": current_app.conf.task_default_queue,
    "version": celery.VERSION[:2] >= (5, 0) and celery.__version__.startswith("5."),
    "error": isinstance(error, celery.exceptions.TaskPredicate),
    "when": error.when,
}
print(json.dumps(answers))
