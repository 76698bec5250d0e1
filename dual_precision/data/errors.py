"""What can go wrong with data, as exceptions a command can print in one line."""


class DataError(RuntimeError):
    """The data cannot be read, written or provisioned; the message says what to do."""


class DataUnavailable(DataError):
    """No source could provide the data set."""


class DamagedData(DataError):
    """A data set is there, but it is not what it must be."""
