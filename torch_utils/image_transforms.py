"""Raw images made those of a data set: crops, sizes and colours as in EDM's and EDM2's dataset_tool.py."""

import functools
from collections.abc import Callable

import numpy as np
import PIL.Image
import PIL.ImageColor

LANCZOS, BOX, BICUBIC = PIL.Image.Resampling.LANCZOS, PIL.Image.Resampling.BOX, PIL.Image.Resampling.BICUBIC
TRANSFORMS = ('center-crop', 'center-crop-wide', 'center-crop-dhariwal')


def make_transform(name: str | None, size: tuple[int, int] | None) -> Callable[[np.ndarray], np.ndarray | None]:
    """A function of images uint8 [H, W, C]; None as its result leaves an image out.

    name: None stretches to `size` (width, height); 'center-crop' takes the largest square; 'center-crop-wide' takes the
    largest part with the proportions of `size` between black bars, and leaves out smaller images (both EDM:
    Karras et al. 2022); 'center-crop-dhariwal' is ADM's for ImageNet (Dhariwal and Nichol 2021). Crops make grey
    images RGB.
    Filters as published: Lanczos; for 'center-crop-dhariwal' halves by boxes, then bicubic.
    Raises ValueError if the transform does not accept the size.
    """
    if name is None:
        return (lambda image: image) if size is None else functools.partial(stretch, size=size)
    if size is None:
        raise ValueError(f'{name} needs --resolution=WxH')
    if name == 'center-crop-wide':
        if size[0] < size[1]:
            raise ValueError(f'{name} makes wide images; give a --resolution with a width above its height')
        return functools.partial(center_crop_wide, size=size)
    if size[0] != size[1]:
        raise ValueError(f'{name} makes squares; give a --resolution of equal width and height')
    function = center_crop if name == 'center-crop' else center_crop_dhariwal
    return functools.partial(function, size=size[0])


def resize(image: np.ndarray, size: tuple[int, int], resample=LANCZOS) -> np.ndarray:
    """uint8 [H, W, C] -> [height, width, C] of `size` (width, height)."""
    if image.shape[1::-1] == tuple(size):
        return image
    resized = np.asarray(PIL.Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).resize(size, resample))
    return resized[:, :, None] if resized.ndim == 2 else resized


def stretch(image, size):
    """To `size`, whatever the proportions."""
    return resize(image, size)


def center_crop(image, size: int):
    """The largest square in the middle, [size, size, C]."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return resize(colored(image[top:top + side, left:left + side]), (size, size))


def center_crop_wide(image, size):
    """The middle with the proportions of `size`, between black bars in a square; None if the image is smaller."""
    width, height = size
    rows = int(np.round(width * image.shape[0] / image.shape[1]))
    if image.shape[1] < width or rows < height:
        return None
    image = colored(image[(image.shape[0] - rows) // 2:(image.shape[0] + rows) // 2])
    canvas = np.zeros([width, width, image.shape[2]], dtype=np.uint8)
    canvas[(width - height) // 2:(width + height) // 2] = resize(image, size)
    return canvas


def center_crop_dhariwal(image, size: int):
    """Halved while it stays large enough, scaled so that the shorter side is `size`, then cropped to the middle."""
    image = colored(image)
    while min(image.shape[:2]) >= 2 * size:
        image = resize(image, (image.shape[1] // 2, image.shape[0] // 2), BOX)
    scale = size / min(image.shape[:2])
    image = resize(image, (round(image.shape[1] * scale), round(image.shape[0] * scale)), BICUBIC)
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top:top + size, left:left + size]


def colored(image):
    """Grey [H, W, 1] as RGB; others as they are."""
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def parse_color(text: str) -> tuple[int, int, int]:
    """'white', '#80ff00' or any other CSS colour without transparency. Raises ValueError."""
    color = PIL.ImageColor.getrgb(text)
    if len(color) != 3:
        raise ValueError(f'{text} is itself transparent')
    return color


def over(image: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """An image as RGB [H, W, 3], with `color` behind what is transparent."""
    if image.shape[2] == 4:
        below = PIL.Image.new('RGBA', image.shape[1::-1], (*color, 255))
        return np.asarray(PIL.Image.alpha_composite(below, PIL.Image.fromarray(image)).convert('RGB'))
    return colored(image)
