"""The formats that models are exported to."""

from typing import NamedTuple


class Format(NamedTuple):
    """What is to be known of a format."""

    suffix: str
    runtime: str | None  #: What loads its files; None where they run on other systems alone
    detectors: bool  #: Whether detectors can be exported to it


FORMATS = {
    'onnx': Format('.onnx', 'onnxruntime', True),
    'openvino': Format('.xml', 'openvino', True),
    'coreml': Format('.mlpackage', None, False),
    'torchscript': Format('.torchscript', 'torch', True),
    # stops where a search for candidates finds fewer than two
    'torch-export': Format('.pt2', 'torch', False),
}


def format_of(path: object) -> str | None:
    """Returns the format of an exported model that can be loaded, by its ending, or None."""
    return next((n for n, f in FORMATS.items() if f.runtime and str(path).endswith(f.suffix)), None)
