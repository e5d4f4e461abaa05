from celeriac.contrib.testing.tasks import *
