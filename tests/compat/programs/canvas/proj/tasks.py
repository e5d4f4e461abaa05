import os

from celery import shared_task
from celery.utils.log import get_task_logger

from .celery import app

logger = get_task_logger(__name__)


@app.task
def add(x, y):
    return x + y


@shared_task
def mul(x, y):
    return x * y


@app.task
def xsum(numbers):
    return sum(numbers)


@app.task
def refuse(number):
    raise ValueError(f"no room for {number}")


@app.task
def note(text):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"{text}\n")


@app.task
def on_error(request, exc, traceback):
    logger.error("%s failed", request.id)
    note.run(f"errback: {type(exc).__name__}: {exc}")


@app.task(bind=True)
def power(self, base, exponent):
    """By itself as often as it takes."""
    if exponent == 1:
        return base
    return self.replace(power.s(base, exponent - 1) | mul.s(base))
