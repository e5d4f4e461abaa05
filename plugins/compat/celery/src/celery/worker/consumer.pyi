from celeriac.worker.consumer import *
