from celeriac.beat import *
