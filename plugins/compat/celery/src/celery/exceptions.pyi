from celeriac.exceptions import *
