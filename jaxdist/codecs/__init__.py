"""How arrays are put on the wire, one file a codec. All in this folder are imported here, and so registered by being
here.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f'{__name__}.{_module.name}')
