from celeriac.worker.components import *
