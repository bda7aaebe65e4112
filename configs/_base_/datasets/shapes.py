"""What the data loaders of the synthetic shapes share: a worker leaves the steps to themselves."""

train_dataloader = dict(num_workers=1, sampler=dict(type='InfiniteSampler', shuffle=True))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False)
)
test_dataloader = val_dataloader
