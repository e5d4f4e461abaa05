from celeriac.contrib.migrate import *
