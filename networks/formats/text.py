"""Text of foreign files in our messages."""


def shown(text, limit: int = 100) -> str:
    """A file's own words, fit for one line of a terminal."""
    return ascii(' '.join(str(text).split()))[1:-1][:limit]
