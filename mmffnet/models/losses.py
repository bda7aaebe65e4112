"""A loss for segmentation with few pixels of some classes."""

import torch
from torch import Tensor, nn

from ..registry import MODELS


@MODELS.register_module()
class ClassDiceLoss(nn.Module):
    """One minus the Dice coefficient, of each class over the whole batch, averaged over classes.

    mmseg's DiceLoss counts the pixels of all classes together, so the largest class prevails.

    Args:
        loss_weight (float): Factor to the loss. Defaults to 1.0.
        smooth (float): Pixels added to overlap and sizes, which makes a class that is neither there
            nor predicted cost nothing. Defaults to 1.0.
        loss_name (str): Name of the loss in the log. Defaults to 'loss_dice'.
    """

    def __init__(
        self, loss_weight: float = 1.0, smooth: float = 1.0, loss_name: str = 'loss_dice'
    ) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.smooth = smooth
        self.loss_name = loss_name

    def forward(
        self, pred: Tensor, target: Tensor, weight: Tensor | None = None, ignore_index: int = 255
    ) -> Tensor:
        """Computes the loss.

        Args:
            pred (Tensor): Logits, (N, classes, H, W).
            target (Tensor): Classes, (N, H, W).
            weight (Tensor, optional): Weights of the pixels, (N, H, W). Defaults to None, all 1.
            ignore_index (int): The label of pixels that count for nothing. Defaults to 255.
        """
        if pred.shape[1] < 2:
            raise ValueError(
                f'ClassDiceLoss takes logits of at least 2 classes, got {tuple(pred.shape)}: set '
                "the head's out_channels to 2"
            )
        known = target != ignore_index
        labels = torch.where(known, target, 0)
        probability = pred.softmax(1, dtype=torch.promote_types(pred.dtype, torch.float32))
        mask = (known if weight is None else known * weight).to(probability.dtype)
        right = probability.gather(1, labels[:, None])[:, 0] * mask
        # row by row, as long sums of small numbers lose digits
        rows = probability.new_zeros(*target.shape[:2], pred.shape[1])
        overlap = rows.scatter_add(2, labels, right).sum((0, 1))
        truth = rows.scatter_add(2, labels, mask).sum((0, 1))
        sizes = (probability.square() * mask[:, None]).sum((0, 2, 3)) + truth
        dice = (2 * overlap + self.smooth) / (sizes + self.smooth)
        return self.loss_weight * (1 - dice).mean()
