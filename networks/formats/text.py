"""Text from foreign files in our messages."""


def shown(text, limit: int = 100) -> str:
    """Text from a file, made safe and short for one line of a terminal."""
    return ascii(' '.join(str(text).split()))[1:-1][:limit]
