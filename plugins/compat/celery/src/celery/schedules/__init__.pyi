from celeriac.schedules import *
