"""What celeriac's Redis plugins stand on: `wire` is a connection. No plugin itself: nobody chooses it."""
