from celeriac.security import *
