"""What an error says to the user, without what must not be said: keys and tokens of the environment."""

import os
import re
import traceback

TRACEBACK = "BPT_RL_TRACEBACK"
HIDDEN = "(hidden)"
MOST_CHARACTERS = 300
_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$", re.IGNORECASE)
# What is shorter would be found in any text; what begins so is where a key lies, and not the key.
_VALUE = re.compile(r"[^/~.]\S{7,}")


def of_error(error: BaseException) -> str:
    """Returns what an error says, and its notes; of what the operating system refused, also the file, and a remedy."""
    return without_secrets(". ".join([_words(error), *getattr(error, "__notes__", [])]))


def _words(error: BaseException) -> str:
    if not isinstance(error, OSError):
        return str(error)
    name = error.filename2 or error.filename
    what = f"{name}: {error.strerror}" if name else str(error)
    return (
        f"{what}; choose a place that can be read or written, or make it so "
        f"({TRACEBACK}=1 shows where in the code this happened)"
    )


def with_traceback(error: BaseException) -> str:
    """Returns what Python itself would print of an error, and where in the code it came from."""
    return without_secrets("".join(traceback.format_exception(error)).rstrip())


def first_line(text: str) -> str:
    """Returns the first line that says something, cut where it is too long for a table."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= MOST_CHARACTERS else f"{line[: MOST_CHARACTERS - 3]}..."


def without_secrets(text: str) -> str:
    """Returns the text with the values of such variables as WANDB_API_KEY hidden."""
    for name, value in os.environ.items():
        if _SECRET.search(name) and _VALUE.fullmatch(value):
            text = text.replace(value, HIDDEN)
    return text


def shown(token: str) -> str:
    """Returns an override as it may be printed: not the value of what is called a key or a token.

    >>> shown("WANDB_API_KEY=abc"), shown("seed=1")
    ('WANDB_API_KEY=(hidden)', 'seed=1')
    """
    key, equals, _ = token.partition("=")
    return without_secrets(f"{key}={HIDDEN}" if equals and _SECRET.search(key) else token)
