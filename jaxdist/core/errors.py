"""Errors for users: each message names what was wrong, where, and what would be right. Any other error is a bug."""


class JaxdistError(Exception):
    """The base class. The command line prints the message without a traceback and exits with `exit_code`."""

    exit_code = 2


class InputError(JaxdistError, ValueError):
    """A value, line, shape or combination of them that cannot be used; the message names one that can."""


class MissingExtraError(JaxdistError, ImportError):
    """An optional package is not installed; the message gives the command that installs it."""


class FileError(JaxdistError, OSError):
    """A file cannot be read or written; the message names it."""

    exit_code = 1


class DatasetError(JaxdistError, FileNotFoundError):
    """A data set is not on this machine; the message describes how to get it."""


class UnknownCollectiveError(JaxdistError, NotImplementedError):
    """A program has a collective whose bytes the ledger cannot count."""


for _error in (JaxdistError, InputError, MissingExtraError, FileError, DatasetError, UnknownCollectiveError):
    _error.__module__ = 'jaxdist'  # tracebacks show the path that users import from
