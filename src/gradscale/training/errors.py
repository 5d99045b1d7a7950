"""The error that a user can mend: a setting, a file or a folder."""


class ConfigError(ValueError):
    """A setting that cannot be used. The message names it, its value and what is allowed."""
