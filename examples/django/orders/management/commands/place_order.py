"""`manage.py place_order tea`"""

import time

from django.core.management.base import BaseCommand, CommandError

from orders.models import Order


class Command(BaseCommand):
    """Place an order and wait for its receipt."""

    help = "Place an order and wait until a worker has sent the receipt."

    def add_arguments(self, parser):
        parser.add_argument("product")

    def handle(self, *args, **options):
        try:
            order = Order.place(options["product"])
        except ValueError as exc:
            raise CommandError(str(exc)) from exc
        deadline = time.monotonic() + 60
        while not order.receipt:
            if time.monotonic() > deadline:
                raise CommandError("no receipt within a minute. Does a worker run? celeriac -A proj worker")
            time.sleep(0.05)
            order.refresh_from_db()
        self.stdout.write(order.receipt)
