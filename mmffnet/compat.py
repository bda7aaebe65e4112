"""Everything that depends on which versions of torch, mmengine and mmcv are installed.

``import mmffnet`` calls :func:`setup`, which

- makes ``mmcv.ops`` usable without mmcv's compiled extension (see ``ops/mmcv_ext.py``);
- makes mmengine read checkpoints from files, http(s) and its storage backends with torch's safe
  reader, which accepts what mmengine and timm save beside the weights while it reads for us;
- lets configs name types without their scope, as in version 0.1 (see ``registry.py``).

Nothing here switches the safety off: a file that needs any other class or function is refused.
"""

import importlib.metadata
import importlib.util

try:
    import mmcv  # noqa: F401
    from mmengine.runner import checkpoint as mmengine_checkpoint
except ModuleNotFoundError as error:
    if error.name not in ('mmcv', 'mmengine'):
        raise
    raise ModuleNotFoundError(
        f'mmffnet needs {error.name}, which is not installed: `pip install mmengine '
        "'mmcv-lite<2.2' torchvision 'setuptools<82'` (in a clone of mmffnet, `pip install -e "
        "'.[lite]'`) brings what is needed; any other mmcv 2 and mmengine will do as well",
        name=error.name,
    ) from None

from .checkpoint.files import load_from_http, load_from_local, load_from_storage
from .registry import accept_moved_names


def setup() -> None:
    """Prepare torch, mmengine and mmcv; calling it again changes nothing."""
    from mmengine.config.utils import MODULE2PACKAGE

    import mmffnet_ops_hook

    # the fork onedl distributes mmseg under another name than mmengine looks for
    try:
        importlib.metadata.distribution(MODULE2PACKAGE['mmseg'])
    except importlib.metadata.PackageNotFoundError:
        if importlib.util.find_spec('mmseg'):
            MODULE2PACKAGE['mmseg'] = 'mmseg'

    mmffnet_ops_hook.install()
    accept_moved_names()
    register = mmengine_checkpoint.CheckpointLoader.register_scheme
    register('', load_from_local, force=True)
    register(('http://', 'https://'), load_from_http, force=True)
    register([r'(\S+\:)?s3://', r'(\S+\:)?petrel://'], load_from_storage, force=True)
    # The loaders of 'torchvision://' and its like call the function by its name in the module.
    mmengine_checkpoint.load_from_local = load_from_local
    mmengine_checkpoint.load_from_http = load_from_http
