"""Trained models on pictures: ``Inferencer('config.py', 'checkpoint.pth')('picture.jpg')``."""

from .inferencer import Inferencer, Summary
from .results import Classification, Detections, Result, ResultWriter, Segmentation
from .sources import Picture, Source, find_sources

__all__ = [
    'Classification',
    'Detections',
    'Inferencer',
    'Picture',
    'Result',
    'ResultWriter',
    'Segmentation',
    'Source',
    'Summary',
    'find_sources',
]
