import json
import os
import time

from celery import chain, chord, group, signature
from celery.canvas import Signature
from celery.exceptions import ChordError
from proj.celery import app
from proj.tasks import add, mul, note, on_error, power, refuse, xsum


def wait_for_note(text):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if os.path.exists(os.environ["NOTES"]):
            with open(os.environ["NOTES"]) as notes:
                found = [line.strip() for line in notes if text in line]
            if found:
                return found
        time.sleep(0.05)
    return None


answers = {}
answers["chain"] = (add.s(2, 2) | mul.s(8) | mul.si(3, 3)).apply_async().get(timeout=60)
answers["partial"] = chain(add.s(2, 2), mul.s(8))().get(timeout=60)
answers["group"] = group(add.s(i, i) for i in range(5))().get(timeout=60)
answers["chord"] = chord((add.s(i, i) for i in range(10)), xsum.s())().get(timeout=60)
answers["in a chain"] = (add.s(1, 1) | group(add.s(i) for i in range(3)) | xsum.s()).delay().get(timeout=60)
answers["starmap"] = add.starmap([(1, 2), (3, 4)]).delay().get(timeout=60)
answers["map"] = xsum.map([[1, 2], [3]]).delay().get(timeout=60)
answers["chunks"] = add.chunks([(i, i) for i in range(6)], 2)().get(timeout=60)
answers["replaced"] = power.delay(2, 5).get(timeout=60)

add.apply_async((2, 3), link=note.si("linked"))
answers["link"] = wait_for_note("linked")
refuse.apply_async((7,), link_error=on_error.s())
answers["errback"] = wait_for_note("no room for 7")

broken = chord([add.s(1, 1), refuse.s(8)])(xsum.s().on_error(on_error.s()))
try:
    broken.get(timeout=60)
except (ChordError, ValueError) as exc:  # the part's own error when that is seen first
    answers["broken chord"] = "no room for 8" in str(exc)
answers["its errback"] = wait_for_note("no room for 8") is not None

as_json = json.loads(json.dumps(add.s(5, 5) | mul.s(2)))
again = signature(as_json, app=app)
answers["by json"] = (isinstance(again, Signature), isinstance(again, type(chain(add.s(1, 1), add.s(1)))))
answers["its answer"] = again.delay().get(timeout=60)

print(json.dumps(answers))
