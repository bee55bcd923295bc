"""Numbers of a study as every console writes them."""

from finetune_api.status import TrialCounts


def ended(counts: TrialCounts) -> int:
    """Trials that came to an end, whichever it is."""
    return counts.completed + counts.stopped + counts.diverged + counts.failed


def counted(counts: TrialCounts) -> str:
    """How many trials came to which end; those that none came to are left out."""
    named = {
        "trained to the end": counts.completed,
        "stopped early": counts.stopped,
        "paused": counts.paused,
        "diverged": counts.diverged,
        "failed": counts.failed,
    }
    return (
        ", ".join(f"{count} {name}" for name, count in named.items() if count) or "no trial ended"
    )


def duration(seconds: float) -> str:
    """In words, rounded to the unit that matters: `40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def format_value(value: object) -> str:
    """A parameter as a person would write it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
