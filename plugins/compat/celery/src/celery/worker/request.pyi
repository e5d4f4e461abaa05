from celeriac.worker.request import *
