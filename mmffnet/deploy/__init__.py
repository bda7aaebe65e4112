"""Getting trained models out: re-parameterised checkpoints."""

from .reparameterize import reparameterize_file

__all__ = ['reparameterize_file']
