"""What celeriac's SQLite plugins stand on: `file` and `wake`. No plugin itself: nobody chooses it."""
