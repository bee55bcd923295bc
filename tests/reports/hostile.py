"""Texts that would do harm if a page took them for markup."""

from finetune_reports.document import Final, Report

HOSTILE = (
    "<script>window.harm = 1</script>",
    "</script><script>window.harm = 1</script>",
    '"><img src=x onerror="window.harm = 1">',
    "' onmouseover='window.harm = 1",
    "<!--",
    "]]>",
    "{{ 7 * 7 }}",
    "javascript:window.harm = 1",
    "<a href='javascript:window.harm = 1'>here</a>",
    "&lt;b&gt;",
    "<b>bold</b><br>",
    "%{customdata} $x^2$",
    "‮txet",
)


def hostile_report(report: Report) -> Report:
    """The report with these texts in every place that data, users or errors have a say in."""
    names = list(HOSTILE)
    trials = [
        trial.model_copy(update={"message": " ".join(names)}) if trial.message else trial
        for trial in report.trials
    ]
    final = Final(
        trial=0,
        params={},
        model_uri=names[0],
        test={"accuracy": 0.5},
        baseline={},
        ensemble=names[1],
    )
    test = {
        "rows": 3,
        "labels": [
            {"label": name, "precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 3}
            for name in names
        ],
        "confusion": [
            [3 if row == column else 1 for column in range(len(names))] for row in range(len(names))
        ],
        "slices": [
            {
                "division": name,
                "value": name,
                "rows": 3,
                "metrics": {"accuracy": 0.5},
                "interval": [0.4, 0.6],
            }
            for name in names
        ],
    }
    attribution = {
        "row": 0,
        "label": names[0],
        "prediction": names,
        "tokens": names,
        "outputs": [{"output": names[0], "attributions": [0.1] * len(names)}],
    }
    data = {
        "fingerprint": "0",
        "parts": {name: {"rows": 1} for name in names},
        "steps": [
            {"part": "train", "step": "read", "rows_in": 1, "changed": 0, "dropped": 0, "why": name}
            for name in names
        ],
    }
    return report.model_copy(
        update={
            "name": names[2],
            "model": names[3],
            "trials": trials,
            "final": final,
            "test": test,
            "attributions": [attribution],
            "data": data,
            "warnings": names,
            "manifest": "\n".join(names),
            "setting": {name: name for name in names},
        }
    )
