from celeriac.worker.worker import *
