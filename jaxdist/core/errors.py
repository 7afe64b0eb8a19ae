"""Errors that tell a user what was wrong, where, and what would be right. Any other error is a fault of the program."""


class JaxdistError(Exception):
    """The base class: the command line prints its text without a traceback, and ends with `exit_code`."""

    exit_code = 2


class InputError(JaxdistError, ValueError):
    """A value, a line, a shape or a combination of them that cannot be used; the text says what would do."""


class MissingExtraError(JaxdistError, ImportError):
    """An optional package that is not installed; the text says how to install it."""


class FileError(JaxdistError, OSError):
    """A file that cannot be written or read; the text names it."""

    exit_code = 1


class DatasetError(JaxdistError, FileNotFoundError):
    """A data set that is not on this machine; the text says how to get it."""


class UnknownCollectiveError(JaxdistError, NotImplementedError):
    """A program communicates in a way that the ledger cannot count."""


for _error in (JaxdistError, InputError, MissingExtraError, FileError, DatasetError, UnknownCollectiveError):
    _error.__module__ = 'jaxdist'  # a traceback names them as users import them
