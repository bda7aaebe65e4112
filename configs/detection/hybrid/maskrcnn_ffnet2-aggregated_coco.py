"""Mask R-CNN with a hybrid of FFNet-2 on COCO, 1x: TransNeXt's attention in the last stage.

The paper's second version has hybrids, whose code and weights were never released: these stages,
the mixer and the recipe are a choice of ours without a published result. Stages 1 to 3 start from
the official weights. Another mixer is one line, see docs/mixers.md.
"""

_base_ = '../maskrcnn_ffnet2_coco.py'

mixer = dict(type='mmffnet.AggregatedAttention', sr_ratio=2, pretrain_size=25)  # 800 / 32
model = dict(
    backbone=dict(
        token_mixer=[None, None, None, mixer],
        init_cfg=dict(strict=False),  # the new mixers are not in the file: a warning lists them
    )
)
