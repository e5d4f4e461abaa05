import json

import website
from celery import current_app
from celery.result import AsyncResult
from orders.tasks import place

placed = place.delay({"number": 17, "items": [{"price": 2.5}, {"price": 4}]}).get(timeout=60)
answers = {
    "order": placed["order"],
    "queue": placed["queue"],
    "receipt": AsyncResult(placed["mail"]).get(timeout=60),
    "current app": current_app.main,
    "same app": website.celery_app is current_app._get_current_object(),
    "default queue": current_app.conf.task_default_queue,
    "found": sorted(name for name in current_app.tasks if not name.startswith(("celery.", "celeriac."))),
}
print(json.dumps(answers))
