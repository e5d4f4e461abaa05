from celeriac.worker import *
