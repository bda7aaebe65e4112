"""What makes the networks fast, and mmcv's operators where mmcv is not compiled."""
