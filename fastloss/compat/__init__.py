"""Other libraries' losses under their own names, arguments, defaults and call order: a module a library, each imported on its own.

Example:
    >>> from fastloss.compat.torchvision import generalized_box_iou_loss  # was: from torchvision.ops import ...
"""
