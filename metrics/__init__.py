"""How far samples are from data: feature networks, streaming moments, Frechet distance and KID."""
