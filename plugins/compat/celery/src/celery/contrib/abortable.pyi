from celeriac.contrib.abortable import *
