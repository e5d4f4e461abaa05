from celeriac.result import *
