"""The ADM U-Net (Dhariwal and Nichol, NeurIPS 2021) and its half that classifies; depends on torch alone."""

from .architecture import Architecture, read_architecture
from .script_util import create_classifier
from .unet import EncoderUNetModel, UNetModel, set_precision

__all__ = ['Architecture', 'EncoderUNetModel', 'UNetModel', 'create_classifier', 'read_architecture', 'set_precision']
