import time

from celery import Celery

app = Celery("tasks")
app.config_from_object("celeryconfig")


@app.task
def add(x, y):
    return x + y


@app.task
def slow_add(x, y):
    time.sleep(0.05)
    return x + y


@app.task(name="arithmetic.divide")
def divide(x, y):
    return x / y
