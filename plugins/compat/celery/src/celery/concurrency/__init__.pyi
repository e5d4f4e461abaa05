from celeriac.concurrency import *
