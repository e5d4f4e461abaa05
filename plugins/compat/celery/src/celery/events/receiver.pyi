from celeriac.events.receiver import *
