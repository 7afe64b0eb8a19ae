"""Distributed algorithms, one file each. Importing this package imports, and so registers, every file in it."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f'{__name__}.{_module.name}')
