from celeriac.canvas import *
