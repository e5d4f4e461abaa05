from celeriac.worker.autoscale import *
