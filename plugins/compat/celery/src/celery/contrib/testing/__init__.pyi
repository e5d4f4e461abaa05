from celeriac.contrib.testing import *
