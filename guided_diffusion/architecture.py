"""What the shapes in a state dict say about an ADM classifier, so that any such file loads without options."""

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

    @property
    def feature_channels(self) -> int:
        """Channels of the middle block's output."""
        return int(CHANNEL_MULT[self.image_size][-1] * self.width)

    def build(self):
        """The network with fresh weights."""
        return create_classifier(
            image_size=self.image_size, classifier_width=self.width, classifier_depth=self.depth,
            classifier_attention_resolutions=self.attention, in_channels=self.in_channels,
            out_channels=self.out_channels, num_classes=self.num_classes)


def read_architecture(state: dict, image_size: int | None = None) -> Architecture:
    """Architecture of the ADM classifier (attention pooling) whose state dict this is. Raises ValueError.

    Two image sizes can have the same shapes (without attention, 32x32 at depth 3 is 256x256 at depth 1, since
    down-sampling has no weights of its own): then it is `image_size` if that is one of them, else the smallest.
    """
    for key in ('time_embed.0.weight', 'input_blocks.0.0.weight', 'out.2.positional_embedding', 'out.2.c_proj.weight'):
        if key not in state or state[key].ndim < 2:
            raise ValueError(f'not an ADM classifier or discriminator: it has no tensor {key!r}')
    width = state['time_embed.0.weight'].shape[1]
    pooled = round((state['out.2.positional_embedding'].shape[1] - 1) ** 0.5)
    blocks = 1 + max(int(m[1]) for m in (re.match(r'input_blocks\.(\d+)\.', key) for key in state) if m)
    if blocks > len(state):  # a number in a name, which is no reason to count so far
        raise ValueError(f'not an ADM classifier or discriminator: {blocks} blocks in {len(state)} tensors')
    found = {}
    for size, mults in CHANNEL_MULT.items():
        depth, remainder = divmod(blocks - len(mults), len(mults))  # a first convolution, and levels - 1 to go down
        if remainder or depth < 1 or size >> len(mults) - 1 != pooled:
            continue
        attention = _attention_resolutions(state, size, width, depth)
        if attention is not None:
            classes = state['label_emb.weight'].shape[0] if 'label_emb.weight' in state else 0
            found[size] = Architecture(
                size, width, depth, ','.join(map(str, attention)), state['input_blocks.0.0.weight'].shape[1],
                state['out.2.c_proj.weight'].shape[0], classes)
    if not found:
        raise ValueError(f'not an ADM classifier of a known resolution: {blocks} blocks of width {width}, '
                         f'{pooled}x{pooled} positions at the end')
    return found.get(image_size, found[min(found)])


def _attention_resolutions(state, size, width, depth) -> list[int] | None:
    """Resolutions whose residual blocks attend, if `state` has the blocks of an image size; None if it has not."""
    resolutions = []
    for level, mult in enumerate(CHANNEL_MULT[size]):
        first = 1 + level * (depth + 1)
        norms = [state.get(f'input_blocks.{index}.0.out_layers.0.weight') for index in range(first, first + depth)]
        if any(norm is None or norm.shape[0] != int(mult * width) for norm in norms):
            return None
        attends = [f'input_blocks.{index}.1.qkv.weight' in state for index in range(first, first + depth + 1)]
        if attends == [True] * depth + [False]:  # the last one goes down
            resolutions.append(size >> level)
        elif any(attends):
            return None
    return resolutions
