"""What celeriac's pools stand on: `process` and `outbox`. No plugin itself: nobody chooses it."""
