"""The backbone of detectors and segmentors with CAS-ViT-XS, which takes the place of another one.

Its weights must be fetched by hand: the error that names them says where they are.
"""

casvit_xs = dict(
    type='mmffnet.CASViT',
    arch='xs',
    norm_eval=True,  # all batch norms keep their statistics
    init_cfg=dict(type='Pretrained', checkpoint='mmffnet://casvit-xs'),
)
