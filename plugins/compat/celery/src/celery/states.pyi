from celeriac.states import *
