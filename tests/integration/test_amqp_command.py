"""`celeriac amqp` on a real RabbitMQ: verbs one by one, and at the prompt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CELERIAC = str(Path(sys.executable).parent / "celeriac")


def amqp(url: str, *words: str, lines: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CELERIAC, "-b", url, "amqp", *words], input=lines, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_verbs_do_what_they_say_on_one_channel(amqp_url: str) -> None:
    lines = """
        queue.declare letters
        exchange.declare post topic
        queue.bind letters post a.*
        basic.publish 'hello \x1b[2J world' post a.b
        basic.get letters
        basic.ack 1
        basic.publish second '' letters true
        queue.purge letters
        queue.delete nobody-has-this
        queue.declare letters true
        basic.get letters
        nonsense
        queue.delete letters
        exchange.delete post
        queue.declare letters true
    """
    done = amqp(amqp_url, "repl", lines=lines)
    assert done.stdout.splitlines() == [
        "queue:letters messages:0 consumers:0",
        "ok",
        "ok",
        "ok",
        "delivery_tag:1",
        "headers:{}",
        "body:hello \\x1b[2J world",
        "ok",
        "ok",
        "1",
        "0",
        "queue:letters messages:0 consumers:0",
        "empty",
        "0",
        "ok",
    ], done.stderr
    assert "There is no verb 'nonsense'" in done.stderr
    assert "NOT_FOUND" in done.stderr
    assert done.returncode == 1


def test_one_verb_is_a_command_and_a_broker_that_is_away_is_69(amqp_url: str) -> None:
    assert amqp(amqp_url, "queue.declare", "single").stdout == "queue:single messages:0 consumers:0\n"
    away = amqp("amqp://guest:geheim@127.0.0.1:1//", "queue.declare", "single")
    assert away.returncode == 69
    assert "geheim" not in away.stderr
