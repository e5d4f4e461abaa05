from celeriac.worker.control import *
