"""The error that every part of the package raises when the user can do something about it."""


class TbkdError(Exception):
    """Something the user can mend: the message names the file, what was expected and what to do.

    The command line shows such an error without a traceback; anything else is a defect of the package.
    """
