"""A transformer of a user's own, as -mt package.module:function names it; tests run commands beside this file."""

from torchvision.models import VisionTransformer


def tiny(classes):
    """One layer on 4 x 4 patches of images of 32 x 32 pixels: attention and LayerNorm, no BatchNorm."""
    return VisionTransformer(image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32,
                             num_classes=classes)
