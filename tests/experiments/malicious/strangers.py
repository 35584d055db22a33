"""What strangers send: a pickle that leaves a marker, and text that is nested beyond reason."""

from pathlib import Path

SECRET = "sesame-open-4711-abcdef"
PENDULUM = ("env=gymnasium", "env.name=Pendulum-v1", "dataset=recorded", "context.episodes=1")
NESTED = "[" * 100_000 + "]" * 100_000


class Touch:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
