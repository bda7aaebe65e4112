"""The model card of a repository on the Hugging Face Hub."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmffnet.benchmark.metafiles import read_entries
from mmffnet.checkpoint.hub import import_hub
from mmffnet.errors import UsageError, shorten
from mmffnet.version import __version__

#: The hub's words for what models of a package do
_PIPELINES = dict(
    mmdet='object-detection', mmseg='image-segmentation', mmpretrain='image-classification'
)
_TEXT = """\
---
{header}
---
# {name}

{kind}, {parameters:.2f} million parameters, for {package} and mmffnet.

## Use

```bash
hf download {repository} --local-dir {name}
mmffnet infer {name}/config.py {name}/model.safetensors PICTURES --out-dir predictions
mmffnet export {name}/config.py {name}/model.safetensors --format onnx
```

The config is code: look at it before you use it. The weights are data alone, which
`hf://{repository}/model.safetensors` names wherever mmffnet takes a checkpoint.
"""


@dataclass
class Published:
    """The results that a card tells."""

    dataset: str = ''  #: '' if the data have no name
    metrics: dict[str, float] = field(default_factory=dict)
    source: str = ''  #: Who says so


def read_published(file: str | None, cfg: Config) -> Published:
    """Read results of a config's model from the ``results.json`` of a report, or a metafile."""
    if file is None:
        return Published()
    if not file.endswith('.json'):
        here = Path(cfg.filename).resolve()
        entries = [e for e in read_entries(file) if e.config and Path(e.config).resolve() == here]
        if len(entries) != 1:
            raise UsageError(f'{file} has {len(entries)} models with the config {here}, not one')
        source = f'Reported by {entries[0].reported_by}.' if entries[0].reported_by else ''
        return Published(entries[0].dataset, entries[0].published, source)
    try:
        summary = json.loads(Path(file).read_text(encoding='utf-8'))['summary']
        # what had no objects has no number, or -1
        known = {key: float(value) for key, value in summary.items() if value is not None}
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise UsageError(f'{file} is no results.json of `mmffnet report` ({error})') from error
    metrics = {key: value for key, value in known.items() if value >= 0}
    return Published('', metrics, f'Measured by `mmffnet report`, version {__version__}.')


def model_card(
    repository: str,
    cfg: Config,
    model: Any,
    classes: list[str],
    published: Published,
    license: str | None = None,
) -> str:
    """Make the text of README.md; it says nothing of a licence if there is none."""
    hub = import_hub('mmffnet push')
    name = repository.partition('/')[2]
    masks = getattr(model, 'with_mask', False)
    task = _PIPELINES[cfg.default_scope] if not masks else 'image-segmentation'
    backbone = type(model.backbone).__name__
    dataset = published.dataset or 'the test data of the config'
    header = hub.ModelCardData(
        library_name='mmffnet',
        license=license,
        tags=[cfg.default_scope, backbone.lower(), *['instance-segmentation'] * masks],
        pipeline_tag=task,
        datasets=[_slug(dataset)] if published.dataset else None,
        model_name=name,
        eval_results=[
            hub.EvalResult(task, _slug(dataset), dataset, _slug(key), value, metric_name=key)
            for key, value in published.metrics.items()
        ]
        or None,
    )
    text = _TEXT.format(
        header=header.to_yaml(),
        repository=repository,
        name=name,
        kind=f'{type(model).__name__} on {backbone} {getattr(model.backbone, "arch", "")}'.strip(),
        package=cfg.default_scope,
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
    )
    if published.metrics:
        rows = ''.join(f'| {key} | {value:.4g} |\n' for key, value in published.metrics.items())
        text += f'\n## Results on {dataset}\n\n{published.source}\n\n| | |\n|---|---|\n{rows}'
    return text + f'\n## Classes\n\n{len(classes)}: {shorten(classes, 100)}\n' * bool(classes)


def _slug(text: str) -> str:
    return re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-')
