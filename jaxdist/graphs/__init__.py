"""Communication graphs: a file for each family. Importing this package imports, and so registers, every file."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f'{__name__}.{_module.name}')
