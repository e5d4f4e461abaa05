from celeriac.utils.text import *
