"""Getting trained models out: re-parameterised checkpoints, and exported files (``export``)."""

from .reparameterize import reparameterize_file

__all__ = ['reparameterize_file']
