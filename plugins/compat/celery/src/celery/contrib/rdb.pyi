from celeriac.contrib.rdb import *
