"""log p(label | image; sigma) of an ADM classifier of noisy images (Dhariwal and Nichol 2021)."""

import torch

from .classifiers import read_classifier, time_convention, vp_mean_and_time


class ClassLikelihood:
    """log p(label | x; sigma) [N] of x [N, C, H, W] in the score network's space, differentiable in x.

    Called with sigma [] or [N] and one-hot class_labels [N, K]. Like discriminators, the classifier sees mean(tau) x at
    time tau(sigma); `time` is 'linear' or 'cosine', the VP time that it was trained with.
    """

    def __init__(self, classifier, time: str = 'linear'):
        self.classifier, self.time = classifier, time

    def __call__(self, x, sigma, class_labels):
        mean, t = vp_mean_and_time(sigma, x, self.time)
        logits = self.classifier((mean * x).to(torch.float32), timesteps=t)  # [N, classes]
        log_p = logits.to(torch.float32).log_softmax(1)[:, :class_labels.shape[1]]
        return (log_p * class_labels).sum(1)


def load_class_likelihood(net, path, dtype: torch.dtype = torch.float32, device='cpu') -> ClassLikelihood:
    """The classifier in a file, checked against the labels and images of `net`. Raises ValueError and OSError."""
    classifier, described = read_classifier(path, 'classifier', net.img_resolution, dtype, device)
    theirs, ours = (described.image_size, described.in_channels), (net.img_resolution, net.img_channels)
    if theirs != ours:
        raise ValueError(f'classifier {path} is for {theirs[0]}x{theirs[0]}x{theirs[1]} images, '
                         f'the network draws {ours[0]}x{ours[0]}x{ours[1]}')
    classes = classifier.metadata.get('classes', described.out_channels)
    if classes != net.label_dim:
        raise ValueError(f'classifier {path} knows {classes} classes, the network has {net.label_dim}')
    return ClassLikelihood(classifier, classifier.metadata.get('time', time_convention(net.img_resolution)))
