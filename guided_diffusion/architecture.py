"""The architecture of an ADM classifier, read from the shapes in its state dict, so that it loads without options."""

import re
from typing import NamedTuple

from .script_util import CHANNEL_MULT, create_classifier


class Architecture(NamedTuple):
    """Arguments of an ADM classifier; `attention` is a comma-separated list of resolutions, '' for none."""

    image_size: int
    width: int
    depth: int
    attention: str
    in_channels: int
    out_channels: int
    num_classes: int  # 0 = unconditional
    channel_mult: tuple = (1,)  # per level

    @property
    def feature_channels(self) -> int:
        """Channels of the middle block's output."""
        return int(self.channel_mult[-1] * self.width)

    @property
    def feature_size(self) -> int:
        """Height and width of the middle block's output."""
        return self.image_size >> len(self.channel_mult) - 1

    def build(self):
        """The network with fresh weights."""
        return create_classifier(
            image_size=self.image_size, classifier_width=self.width, classifier_depth=self.depth,
            classifier_attention_resolutions=self.attention, in_channels=self.in_channels,
            out_channels=self.out_channels, num_classes=self.num_classes, channel_mult=self.channel_mult)


def read_architecture(state: dict, image_size: int | None = None) -> Architecture:
    """Architecture of the ADM classifier (attention pooling) whose state dict this is. Raises ValueError.

    The same shapes can belong to several image sizes, since down-sampling has no weights of its own (without
    attention, 32x32 at depth 3 is 256x256 at depth 1). Then `image_size` is taken if it is one of them, else the
    smallest, preferring published channel multiples.
    """
    for key in ('time_embed.0.weight', 'input_blocks.0.0.weight', 'out.2.positional_embedding', 'out.2.c_proj.weight'):
        if key not in state or state[key].ndim < 2:
            raise ValueError(f'not an ADM classifier or discriminator: it has no tensor {key!r}')
    width = state['time_embed.0.weight'].shape[1]
    pooled = round((state['out.2.positional_embedding'].shape[1] - 1) ** 0.5)
    blocks = max(int(m[1]) for m in (re.match(r'input_blocks\.(\d+)\.', key) for key in state) if m)
    if blocks >= len(state):  # a number in a name is no reason to count that far
        raise ValueError(f'not an ADM classifier or discriminator: {blocks} blocks in {len(state)} tensors')
    found = []
    for levels in CHANNEL_MULT:
        depth, remainder = divmod(blocks + 1 - levels, levels)  # each level except the last ends in a block that halves
        size = pooled << levels - 1
        shape = None if remainder or depth < 1 else _read_levels(state, width, levels, depth, size)
        if shape is None:
            continue
        mults, attention = shape
        classes = state['label_emb.weight'].shape[0] if 'label_emb.weight' in state else 0
        found.append(Architecture(
            size, width, depth, ','.join(map(str, attention)), state['input_blocks.0.0.weight'].shape[1],
            state['out.2.c_proj.weight'].shape[0], classes, mults))
    if not found:
        raise ValueError(f'not an ADM classifier: no number of levels fits its {blocks} blocks of width {width} and '
                         f'{pooled}x{pooled} positions at the end')
    return min(found, key=lambda a: (a.image_size != image_size, a.channel_mult != CHANNEL_MULT[len(a.channel_mult)],
                                     a.image_size))


def _read_levels(state, width, levels, depth, size) -> tuple[tuple, list[int]] | None:
    """(channel multiples, resolutions with attention) if the blocks form these levels of this depth, else None."""
    mults, attention = [], []
    channels = state['input_blocks.0.0.weight'].shape[0]
    for level in range(levels):
        first = 1 + level * (depth + 1)
        indices = range(first, first + depth + (level < levels - 1))
        widths = [_block_widths(state, index) for index in indices]
        out = widths[0][1]
        if widths != [(channels, out)] + [(out, out)] * (len(widths) - 1) or level == 0 and out != channels:
            return None
        attends = [f'input_blocks.{index}.1.qkv.weight' in state for index in indices]
        if all(attends[:depth]) and not any(attends[depth:]):
            attention.append(size >> level)
        elif any(attends):
            return None
        mults.append(out / width)
        channels = out
    return tuple(mults), attention


def _block_widths(state, index) -> tuple[int | None, ...]:
    """Input and output channels of residual block `index`; None if it is not a residual block."""
    norms = (state.get(f'input_blocks.{index}.0.{part}.0.weight') for part in ('in_layers', 'out_layers'))
    return tuple(None if norm is None else norm.shape[0] for norm in norms)
