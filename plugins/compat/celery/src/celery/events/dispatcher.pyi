from celeriac.events.dispatcher import *
