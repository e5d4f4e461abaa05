"""`python -m celeriac.cli`."""

from celeriac.cli import main

main()
