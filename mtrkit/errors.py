"""Every error that mtrkit raises on purpose, and its warnings.

A message names what was given, what was expected and what to do about it.
"""


class MtrkitError(Exception):
    """Base of all errors raised by mtrkit."""


class UnknownNameError(MtrkitError, KeyError):
    """No method, adapter, model or backend has this name; the message lists the known ones."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would print the message in quotes


class OptionError(MtrkitError, ValueError):
    """An option does not exist or its value is out of range."""


class ScheduleError(MtrkitError, ValueError):
    """The wanted reduction cannot be reached with these layers, tokens and method."""


class UnsupportedModelError(MtrkitError, TypeError):
    """No adapter fits the model, or one does but the model uses a feature that cannot be reduced correctly."""


class InputError(MtrkitError, ValueError):
    """A tensor has a shape, dtype or device that the operation cannot take."""


class StreamError(MtrkitError, AttributeError):
    """Code between the blocks of a reduced model has met what travels there, and takes it for a tensor."""


class BackendError(MtrkitError, RuntimeError):
    """The scan backend that was asked for cannot run here; the message says why.

    Attributes:
        reason: The same without what to do.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = message if reason is None else reason


class CheckpointError(MtrkitError, RuntimeError):
    """A checkpoint is unreadable, unsafe, or does not belong to the model."""


class ExportError(MtrkitError, RuntimeError):
    """The model cannot be exported to this format, or the file would not give what the model gives."""


class CheckpointWarning(UserWarning):
    """A checkpoint was adapted to the model, or something was assumed that the file does not say."""


class SizeWarning(UserWarning):
    """The patches do not cover the whole image."""


class FrameWarning(UserWarning):
    """A file holds several images, and only the first is looked at."""


class PluginWarning(UserWarning):
    """A module of another package that adds to mtrkit cannot be imported."""


class SmallModelWarning(UserWarning):
    """The model is of a size that is known to lose much accuracy to methods that do not keep time."""


class StandInError(MtrkitError, ImportError):
    """A part of mamba_ssm or causal_conv1d is imported that mtrkit, which stands in for them, does not have."""


class StandInNameError(MtrkitError, AttributeError):
    """The same for a name that is looked up in one of their modules."""
