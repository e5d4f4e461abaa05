"""`python -m celeriac`: the command line, for where the script `celeriac` is not on the path."""

from celeriac.cli import main

main()
