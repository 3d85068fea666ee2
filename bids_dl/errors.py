"""What can go wrong, each with the exit code of the BIDS execution specification."""

import errno


class BidsDLError(Exception):
    """A problem the person at the keyboard can solve; the message says who, what was found, what to do."""

    exit_code = 1


class UsageError(BidsDLError):
    """The command line or the configuration asks for something that does not exist."""

    exit_code = 64


class InvalidDatasetError(BidsDLError):
    """The folder cannot be understood as a BIDS dataset."""

    exit_code = 16


class UnknownLevelError(BidsDLError):
    """The analysis level is neither ``participant`` nor ``group``."""

    exit_code = 17


class NothingSelectedError(BidsDLError):
    """The labels and filters leave no participant or no file."""

    exit_code = 18


class DataError(BidsDLError):
    """A file was read but its content cannot be used."""

    exit_code = 65


class MissingInputError(BidsDLError):
    """A file or folder that was named does not exist."""

    exit_code = 66


class OutputError(BidsDLError):
    """The output cannot be created, or belongs to something else."""

    exit_code = 73


DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the system errors that mean: no room to write."""


class DiskError(BidsDLError):
    """Writing failed, most often because the disk is full."""

    exit_code = 74


def no_room(problem: OSError) -> str:
    """Phrase what could not be written for want of room; any other problem is raised again."""
    if problem.errno not in DISK_FULL:
        raise problem
    return f"writing {problem.filename or 'a file'} failed: {problem.strerror}"


def damaged(name: str, problem: object) -> DataError:
    """Phrase that a file could not be read to its end."""
    return DataError(f"{name} ends early or is damaged ({problem}); copy it again from its source.")
