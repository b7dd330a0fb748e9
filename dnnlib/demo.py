"""Paths of the small networks and statistics that ship with the repository."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

DEMO_SCORE = ROOT / 'checkpoints' / 'demo' / 'score.safetensors'
DEMO_CLASSIFIER = ROOT / 'checkpoints' / 'demo' / 'classifier.safetensors'
DEMO_DISCRIMINATOR = ROOT / 'checkpoints' / 'demo' / 'discriminator.safetensors'
DEMO_FEATURES = ROOT / 'checkpoints' / 'demo' / 'features.safetensors'
DEMO_NOISE_LEVEL = ROOT / 'checkpoints' / 'demo' / 'noise_level.safetensors'
DEMO_REFLECTED = ROOT / 'checkpoints' / 'demo' / 'reflected.safetensors'
DEMO_STATS = ROOT / 'stats' / 'cifar10-demo.npz'
