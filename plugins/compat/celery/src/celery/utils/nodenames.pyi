from celeriac.utils.nodenames import *
