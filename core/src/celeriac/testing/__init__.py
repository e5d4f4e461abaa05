"""For tests: of celeriac's own plugins, of others', and of programs that use celeriac.

For programs: `plugin` has the pytest fixtures, `rehearsal` runs an app in the test's own thread, `threaded` a whole
worker beside it (docs/reference/testing.md).

`broker_suite`, `backend_suite`, `serializer_suite` and `pool_suite` are the conformance suites of the four kinds;
`services` starts private servers, and `fixtures` gives them to pytest. No other room imports this one: pytest, which it
needs, comes with `celeriac[testing]` and stays out of production.
"""

from __future__ import annotations

import sys
from typing import Final

#: Modules with assertions about plugins. pytest shows the values that an assertion is about only of modules that it was
#: told of before they are imported.
SUITE_MODULES: Final = tuple(
    f"{__name__}.{name}"
    for name in ("backend_suite", "broker_suite", "kit", "pool_suite", "serializer_suite", "state_suite")
)

if "pytest" in sys.modules:  # otherwise nobody is there to show them
    sys.modules["pytest"].register_assert_rewrite(*SUITE_MODULES)
