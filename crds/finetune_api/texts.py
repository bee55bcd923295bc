"""Texts that others wrote, made safe to be shown and kept. It imports nothing: `finetune ls` is to start at once."""


def plain(text: object) -> str:
    """One line of `text`, with control characters and what no file can hold as escapes: it must not steer a terminal."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in str(text)
    )


def printable(text: str) -> str:
    """`text` with lone surrogates, which no status and no file can hold, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
