"""Write a model, dense or reduced, as a file that runs without mtrkit."""

from mtrkit.exporting.export import Exported, export

__all__ = ["Exported", "export"]
