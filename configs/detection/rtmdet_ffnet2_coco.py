"""RTMDet with FFNet-2 on COCO, 300 epochs: RTMDet-m with another backbone."""

_base_ = 'mmdet::rtmdet/rtmdet_m_8xb32-300e_coco.py'
custom_imports = dict(imports=['mmffnet'], allow_failed_imports=False)

model = dict(
    # RTMDet feeds its own backbone BGR; FFNet's weights want RGB
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=dict(
        _delete_=True,
        type='FFNet',
        arch='ffnet2',
        out_indices=(1, 2, 3),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='mmffnet://ffnet2-distilled'),
    ),
    neck=dict(in_channels=[176, 352, 704]),
)
