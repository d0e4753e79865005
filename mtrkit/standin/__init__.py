"""Stand-ins for ``mamba_ssm`` and ``causal_conv1d``, so that code which imports them runs where they cannot."""

from mtrkit.standin.install import StandIns, as_mamba_ssm

__all__ = ["StandIns", "as_mamba_ssm"]
