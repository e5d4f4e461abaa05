from celeriac.utils.log import *
