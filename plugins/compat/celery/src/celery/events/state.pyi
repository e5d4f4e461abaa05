from celeriac.events.state import *
