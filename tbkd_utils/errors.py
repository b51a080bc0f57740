"""The errors that somebody may want to tell apart; all say what the user can do."""


class TbkdError(Exception):
    """An error that the user can fix: the message names the file, what was expected and what to do.

    The command line shows such an error without a traceback; anything else is a defect of the package.
    """


class DataError(TbkdError, ValueError):
    """A file or a dataset that cannot be used as it is."""


class SettingsError(TbkdError, ValueError):
    """A recipe, a setting or a value that does not exist or does not fit the others."""


class ModelError(TbkdError, ValueError):
    """A network, its weights, or what was asked of it."""


class RunError(TbkdError, RuntimeError):
    """A run folder or a cluster that cannot be written, read, reached or used."""


class NotebookError(TbkdError, RuntimeError):
    """A notebook that is missing, or failed in one of its cells."""


class UsageError(TbkdError, ValueError):
    """Arguments of a function that are out of range or do not go together."""
