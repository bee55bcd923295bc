"""`finetune schema`: the JSON schema of manifests, for editors."""

import argparse
import sys

from rich.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what may stand after `finetune schema`."""
    parser.add_argument(
        "--class",
        dest="of_class",
        action="store_true",
        help="the schema of a FineTuneClass, not of a FineTuneStudy",
    )


def run(parsed: argparse.Namespace, console: Console) -> int:
    """Print the schema; 0."""
    from finetune_api.editor_schema import as_text, class_schema, study_schema

    sys.stdout.write(as_text(class_schema() if parsed.of_class else study_schema()))
    return 0
