"""The kernel: finds plugins, imports the chosen ones, and has them make transports, backends, serializers and pools."""

from celeriac.kernel.discovery import PluginInfo
from celeriac.kernel.kernel import Kernel
from celeriac.kernel.loader import LoadedPlugin

__all__ = ["Kernel", "LoadedPlugin", "PluginInfo"]
