"""For tests: of celeriac's own plugins, of others', and of programs that use celeriac.

`services` starts private servers, `fixtures` gives them to pytest. Nothing here is imported by production code; pytest
comes with `celeriac[testing]`.
"""
