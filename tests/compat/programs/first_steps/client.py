import json

from celery.result import AsyncResult
from tasks import add, app, divide, slow_add

answers = {}
result = add.delay(4, 4)
answers["add"] = result.get(timeout=60)
answers["ready"] = (result.ready(), result.successful(), result.state)
answers["again"] = AsyncResult(result.id, app=app).result
answers["name"] = AsyncResult(result.id, app=app).name
answers["routed"] = slow_add.apply_async((2, 3), countdown=0.2).get(timeout=60)
answers["by name"] = app.send_task("arithmetic.divide", args=[9, 3]).get(timeout=60)

failed = divide.delay(1, 0)
try:
    failed.get(timeout=60)
except ZeroDivisionError as exc:
    answers["error"] = (type(exc).__name__, str(exc), failed.state, "return x / y" in failed.traceback)
answers["kept in"] = failed.get(propagate=False).__class__.__name__
answers["timezone"] = str(app.conf.timezone)

print(json.dumps(answers))
