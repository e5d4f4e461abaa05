from celeriac.utils import *
