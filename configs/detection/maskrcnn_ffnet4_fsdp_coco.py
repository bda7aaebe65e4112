"""Mask R-CNN with FFNet-4 on COCO, 1x, its weights and optimizer shared out over the GPUs (FSDP).

A pattern for models that one GPU cannot hold: FlexibleRunner with mmengine's FSDPStrategy. It needs
several GPUs, and has not been run by the authors.
"""

_base_ = 'maskrcnn_ffnet4_coco.py'

runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    state_dict_cfg='full',  # checkpoints that every other tool can read
    model_wrapper=dict(
        auto_wrap_policy=dict(
            type='torch.distributed.fsdp.wrap.size_based_auto_wrap_policy',
            min_num_params=5_000_000,
        )
    ),
)

# The optimizer is built when each GPU holds flat slices of the parameters, and their names have
# changed: no layer decay, and the same weight decay for all of them.
optim_wrapper = dict(constructor='DefaultOptimWrapperConstructor', paramwise_cfg=None)
