from celeriac.contrib.testing.worker import *
