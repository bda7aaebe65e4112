"""Fine-tuning on ImageNet for 30 epochs, on 8 GPUs with 64 images each: FFNet's official recipe.

The official runs are in mixed precision: `--amp`.
"""

_base_ = './imagenet_320e.py'

optim_wrapper = dict(optimizer=dict(lr=5e-6, weight_decay=1e-8))
param_scheduler = []  # the learning rate is constant
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=512)
