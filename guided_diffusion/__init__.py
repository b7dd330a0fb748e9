"""ADM's classifier (Dhariwal and Nichol, NeurIPS 2021), which also serves as a discriminator; needs only torch."""

from .architecture import Architecture, read_architecture
from .script_util import create_classifier
from .unet import EncoderUNetModel, set_precision

__all__ = ['Architecture', 'EncoderUNetModel', 'create_classifier', 'read_architecture', 'set_precision']
