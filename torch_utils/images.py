"""Images between networks ([-1, 1], NCHW) and files (uint8, NHWC)."""

import io
import math

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import torch

PNG_END = b'IEND\xaeB`\x82'  # name and checksum of the last chunk, which PIL does not require


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """[N, C, H, W] in [-1, 1] -> uint8 [N, H, W, C] as the published scripts do: 127.5 x + 128, clipped, truncated."""
    return (images * 127.5 + 128).clip(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def as_uint8(images) -> np.ndarray:
    """Images in any usual form -> uint8 [N, H, W, C] with 1 or 3 channels.

    images: a tensor or array, or an object that holds one as `.images` (such as sampling.Samples). Floats are
    [N, C, H, W] in [-1, 1], converted by `to_uint8`; uint8 are [N, C, H, W] or [N, H, W, C].
    Raises ValueError for other shapes and for NaN.
    """
    images = torch.as_tensor(getattr(images, 'images', images)).detach()
    shape = tuple(images.shape)
    if images.dtype == torch.uint8 and len(shape) == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3):
        return images.cpu().numpy()
    if len(shape) != 4 or shape[1] not in (1, 3) or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(f'images of {str(images.dtype).removeprefix("torch.")} {list(shape)}; expected floats '
                         '[N, C, H, W] in [-1, 1] or uint8 [N, C, H, W] or [N, H, W, C], C 1 or 3')
    if images.dtype == torch.uint8:
        return images.permute(0, 2, 3, 1).cpu().numpy()
    if bool(images.isnan().any()):
        raise ValueError('the images hold NaN')
    return to_uint8(images)


def from_uint8(images: torch.Tensor) -> torch.Tensor:
    """uint8 [N, C, H, W] -> float32 in [-1, 1]."""
    return images.to(torch.float32) / 127.5 - 1


def image_grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """uint8 [N, H, W, C] -> one picture [H', W', C], row by row, with black gaps; columns default to sqrt(N)."""
    count, height, width, channels = images.shape
    columns = columns or max(int(math.sqrt(count)), 1)
    padding = 2  # pixels
    rows = -(-count // columns)
    grid = np.zeros([rows * (height + padding) + padding, columns * (width + padding) + padding, channels], np.uint8)
    for index, image in enumerate(images):
        top = padding + index // columns * (height + padding)
        left = padding + index % columns * (width + padding)
        grid[top:top + height, left:left + width] = image
    return grid


def is_whole_png(blob: bytes) -> bool:
    """Whether a PNG file is complete. Raises what PIL raises for a damaged one."""
    with PIL.Image.open(io.BytesIO(blob)) as image:
        image.load()
    return blob.endswith(PNG_END)


def png_bytes(image: np.ndarray, text: dict[str, str] | None = None) -> bytes:
    """uint8 [H, W, C] with 1, 3 or 4 channels -> the bytes of a PNG file, with `text` in it."""
    buffer, info = io.BytesIO(), PIL.PngImagePlugin.PngInfo()
    for name, value in (text or {}).items():
        info.add_text(name, value)
    PIL.Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(buffer, 'PNG', pnginfo=info)
    return buffer.getvalue()
