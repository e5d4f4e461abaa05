from celeriac.bootsteps import *
