"""The card of the final model: what it is, what it was made from, how good it is, and how to load it."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

from finetune_api.hyperparameters import Hyperparameters, Scalar, resolve
from finetune_api.manifest import dump_yaml
from finetune_api.metrics import shown_metrics
from finetune_api.study import StudySpec
from finetune_trainer.artifacts.ensemble import EnsembleAbout, load_ensemble
from finetune_trainer.artifacts.exported import load_exported
from finetune_trainer.data.prepared import PreparedData
from finetune_trainer.data.windows import OVERLAP
from finetune_trainer.search.state import StudyState
from finetune_trainer.search.trials import Trial
from finetune_trainer.tasks import TrainingTask, task_of
from finetune_trainer.tasks.report import LabelReport
from finetune_trainer.training.pooling import CODE
from finetune_trainer.training.slices import SliceReport

CARD = "README.md"

_IMPORT = "from transformers import AutoModelForSequenceClassification, AutoTokenizer"
_LOAD = "AutoModelForSequenceClassification.from_pretrained(folder{trust}).eval()"
_TRUST = ", trust_remote_code=True"
"""For a head of ours, whose code lies beside the model."""


@dataclass(frozen=True)
class Card:
    """Everything that the card needs."""

    spec: StudySpec
    data: PreparedData
    """As prepared: train, validation and test apart."""

    state: StudyState
    """What the records say at the end of the search."""

    winner: Trial
    config: Hyperparameters
    """The hyperparameters that the final model was trained with."""

    epochs: float
    """Epochs that it was trained for."""

    tested: Mapping[str, float]
    constant: Mapping[str, float]
    """Metrics on the test rows: of the model, and of the best constant prediction."""

    setting: Mapping[str, str]
    """See `provenance.setting`."""

    onnx_difference: float | None = None
    """Largest difference between the outputs and those of `model.onnx`, as `export_onnx` returns it; None without ONNX."""

    has_code: bool = False
    """Whether its head is not part of transformers, so that its code lies beside the model."""

    ensemble: EnsembleAbout | None = None
    """None if the winner alone is the final model."""

    slices: Sequence[SliceReport] = ()
    """How it does on each slice of the test rows."""

    types: Sequence[LabelReport] = ()
    """How well it finds the entities of each type in the test rows, where words are tagged."""

    name: str = ""
    """Of the study; without one, the base model is the title."""

    def text(self) -> str:
        """The card as Markdown, with the front matter that the Hugging Face hub reads."""
        parts = [
            f"---\n{dump_yaml(self._front_matter())}---",
            f"# {self.name or self._base_name}",
            f"{self._base}, fine-tuned by a FineTuneStudy to predict {self._purpose}. It was trained on {self._trained_rows}, for "
            f"{_counted(self.epochs, 'epoch')}.{self._why_epochs}",
            *self._ensemble_part(),
            "## Data",
            *self._data_part(),
            "## Test",
            f"On {self._rows('test')} test rows, which no trial has seen and which were used only once:",
            _table(("metric", "this model", "constant prediction"), self._test_rows()),
            f"The constant prediction is the same for every row: {self._task.constant_words} training rows.",
            *self._types_part(),
            *self._slices_part(),
            "## Hyperparameters",
            _table(("name", "value", "from"), self._hyperparameter_rows()),
            "All other hyperparameters have their default values.",
            "## Search",
            *self._search_part(),
            "## Use",
            *self._use_part(),
            "## Limits",
            "\n".join(f"- {limit}" for limit in self._limits()),
            "## Made with",
            _table(("what", "which"), self.setting.items()),
        ]
        return "\n\n".join(parts) + "\n"

    def _ensemble_part(self) -> Iterator[str]:
        about = self.ensemble
        if about is None:
            return
        yield (
            f"This is an ensemble of {len(about.members)} models ({about.method}), each from one trial. What is said "
            f"above, and the hyperparameters below, are those of trial {self.winner.number}, the winner. To decide "
            "whether they are better together, the members were first trained on the training rows only: the ensemble "
            f"reached {about.metric} {about.value:.4f} on the validation rows, each member alone the value in the "
            "table."
        )
        rows = [
            (
                str(member.trial),
                f"{member.weight:.3f}",
                f"{member.value:.4f}",
                f"{self._count_trained(self._config_of(member.trial)):,}",
            )
            for member in about.members
        ]
        yield _table(("trial", "weight", about.metric, "rows trained on"), rows)

    def _front_matter(self) -> dict[str, object]:
        source = self.data.model
        on_the_hub = not Path(source.name).is_dir()
        return {
            **({"base_model": source.name} if on_the_hub else {}),
            "library_name": "transformers",
            "pipeline_tag": self._task.pipeline,
            "tags": ["finetune-operator", self.spec.task],
            "metrics": list(shown_metrics(self.tested)),
        }

    @property
    def _base_name(self) -> str:
        return self._written.rstrip("/").rpartition("/")[2]

    @property
    def _base(self) -> str:
        revision = self.data.model.revision
        return f"`{self._written}`" + (f" at revision `{revision}`" if revision else "")

    @property
    def _written(self) -> str:
        """The pretrained model as the study names it."""
        return self.config.pretrained_model or self.spec.model.name

    @property
    def _task(self) -> TrainingTask:
        return task_of(self.spec.task)

    @property
    def _purpose(self) -> str:
        names = self.data.label_names
        return self._task.purpose.format(count=len(names), name=names[0])

    @property
    def _trained_rows(self) -> str:
        """How many rows the model was trained on, and which."""
        alone = self.spec.refit_rows == "Train"
        given = self._rows("train") if alone else f"{len(self._refit_data.train):,}"
        parts = f"{self._rows('train')} for training and {self._rows('validation')} for validation"
        count = self._count_trained(self.config)
        if count == len(self._refit_data.train):
            return f"{given} training rows" if alone else f"{given} rows ({parts})"
        of = f"the {given} training rows" if alone else f"{given} rows ({parts})"
        threshold = f"duplicateThreshold {self.config.duplicate_threshold:g}"
        return f"{count:,} of {of}: by {threshold}, the others are near-duplicates"

    @cached_property
    def _refit_data(self) -> PreparedData:
        """The data of the refit."""
        return self.data if self.spec.refit_rows == "Train" else self.data.merged()

    def _count_trained(self, config: Hyperparameters) -> int:
        """How many rows a refit with `config` trains on."""
        data = self._refit_data
        if config.duplicate_threshold >= 1:
            return len(data.train)
        return len(data.distinct(config.duplicate_threshold)[0])

    def _config_of(self, trial: int) -> Hyperparameters:
        return resolve(self.spec.hyperparameters, self.state.trials[trial].params)

    @property
    def _why_epochs(self) -> str:
        """Why it was not trained for all epochs of its hyperparameters; empty if it was."""
        most = self.config.epochs
        if self.epochs >= most:
            return ""
        end = f" after {_counted(self.epochs, 'epoch')} of {most}"
        why = f"Its trial ended{end}"
        if self.spec.objective.best_of == "Max":
            why = f"Its trial had the best {self.spec.objective.metric} on validation rows{end}"
        return f" {why}; the learning-rate schedule is that of {most} epochs."

    def _rows(self, part: str) -> str:
        return f"{len(self.data.part(part)):,}"

    def _data_part(self) -> Iterator[str]:
        columns = ", ".join(f"`{name}`" for name in self.spec.dataset.read)
        parts = ("train", "validation", "test")
        yield _table(("split", "rows"), [(part, self._rows(part)) for part in parts])
        per = "at a time" if self._task.tags_words else "per row"
        yield f"The model reads {columns}, up to {self._limit} tokens {per}."
        yield f"It predicts {', '.join(f'`{name}`' for name in self.data.label_names)}."
        yield f"Fingerprint of the prepared rows: `{self.data.fingerprint}`."
        if self.data.warnings:
            yield "Warnings:"
            yield "\n".join(f"- {warning}" for warning in self.data.warnings)

    @property
    def _limit(self) -> int:
        return self.data.limit(self.config.max_length)

    def _test_rows(self) -> Iterator[tuple[str, str, str]]:
        for name, value in shown_metrics(self.tested).items():
            constant = self.constant.get(name)
            yield name, f"{value:.4f}", "" if constant is None else f"{constant:.4f}"

    def _types_part(self) -> Iterator[str]:
        """How well it finds the entities of each type."""
        if not self.types:
            return
        rows = [
            (one.label, one.support, _four(one.precision), _four(one.recall), _four(one.f1))
            for one in self.types
        ]
        yield "By type of entity (found: its first word, its last and its type are right):"
        yield _table(("type", "entities", "precision", "recall", "f1"), rows)

    def _slices_part(self) -> Iterator[str]:
        """How it does on each slice of the test rows."""
        if not self.slices:
            return
        metrics = list(dict.fromkeys(chain.from_iterable(one.metrics for one in self.slices)))
        head = ("slice", "rows", metrics[0], "95 % interval", *metrics[1:])
        rows = []
        for one in self.slices:
            low, high = one.interval or (math.nan, math.nan)
            first, *others = (_four(one.metrics.get(name)) for name in metrics)
            between = f"{low:.4f} to {high:.4f}" if one.interval else ""
            rows.append((f"{one.division} {one.value}", one.rows, first, between, *others))
        yield "By slice of the test rows:"
        yield _table(head, rows)
        yield "The interval holds 95 % of samples of as many rows, drawn from the slice with replacement."

    def _hyperparameter_rows(self) -> Iterator[tuple[str, Scalar, str]]:
        fixed = self.spec.hyperparameters
        named = fixed.to_json() if fixed else {}
        for name, value in self.config.to_json().items():
            if name in self.winner.params:
                yield name, value, "the search"
            elif name in named:
                yield name, value, "the study"

    def _search_part(self) -> Iterator[str]:
        search, trials = self.state.problem.search, self.state.trials
        scheduler = "" if search.scheduler.type == "None" else f" with {search.scheduler.type}"
        yield (
            f"{search.algorithm}{scheduler}, seed {search.seed}: {_counted(len(trials), 'trial')}, of which trial "
            f"{self.winner.number} won."
        )
        best, validation = self.winner.best, self.spec.validation
        assert best is not None  # a winner has one
        error = best.standard_error
        spread = "" if error is None else f" ± {error:.4f} (standard error)"
        several = [
            _counted(count, what)
            for count, what in ((validation.folds, "fold"), (validation.repeats, "repeat"))
            if count > 1
        ]
        mean = f", the mean over {' and '.join(several)}" if several else ""
        yield (
            f"Its {self.spec.objective.metric} on validation rows after {_counted(best.epoch, 'epoch')}: "
            f"{best.value:.4f}{spread}{mean}."
        )

    def _use_part(self) -> Iterator[str]:
        install = "`pip install 'finetune-operator[trainer]'`"
        if self.ensemble is not None:
            yield f"This project loads it: {install}."
            yield f"```python\n{self._code_together()}\n```"
        else:
            if self.has_code:
                yield (
                    f"The head with pooling {self.config.pooling} is not part of transformers: its code is the short file "
                    f"`{CODE}` beside the model, which `trust_remote_code=True` runs. This project loads the "
                    f"model without running it ({install}): `{load_exported.__module__}.{load_exported.__name__}"
                    '(Path("."))`.'
                )
            yield f"```python\n{self._code()}\n```"
        cleaning = self.spec.dataset.cleaning.to_json()
        steps = [name for name, value in cleaning.items() if value is True]
        if steps:
            yield f"Clean texts first as the study did: {', '.join(steps)}."
        if self.spec.dataset.join_text_columns:
            yield "Join the columns of a row into one text, with the tokenizer's separator between them."
        if self.onnx_difference is not None:
            yield (
                "`model.onnx` takes the same inputs and gives the same outputs; on test rows they differ by "
                f"at most {self.onnx_difference:.1g} (relative to the largest output, if that is above 1)."
            )
        elif self.spec.artifacts.onnx:
            yield "`model.onnx` in the folder of each member takes the same inputs and gives the same outputs as that member."

    @property
    def _given(self) -> str:
        return '["a text"], ["its second text"]' if len(self.data.columns) == 2 else '["a text"]'

    def _code_together(self) -> str:
        """The code to load and use the ensemble."""
        lines = [
            f"from {load_ensemble.__module__} import load_ensemble",
            "",
            'ensemble = load_ensemble(".")  # where this file is',
            self._task.card_call_together.format(given=self._given),
            self._task.card_answer_together,
        ]
        return "\n".join(lines)

    def _code(self) -> str:
        """The code to load and use the model."""
        if self._task.card_pipeline:
            text = "\n".join(self._task.card_pipeline)
            given = '"a text"'
            if self.spec.dataset.tokens_column is not None:
                given = '["a", "list", "of", "words"], is_split_into_words=True'
            return text.format(given=given, overlap=self._limit // OVERLAP)
        load = _LOAD.format(trust=_TRUST if self.has_code else "")
        lines = [
            *self._task.card_imports,
            _IMPORT,
            "",
            'folder = "."  # where this file is',
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            f"model = {load}",
            f'inputs = tokenizer({self._given}, truncation=True, padding=True, return_tensors="pt")',
            "logits = model(**inputs).logits",
            *self._task.card_answer,
        ]
        return "\n".join(lines)

    def _limits(self) -> Iterator[str]:
        yield "Expect worse predictions for texts unlike those it was trained on, and for other languages."
        end = "last" if self.data.frame.left else "first"
        if self._task.tags_words:
            yield f"It reads {self._limit} tokens at a time: longer texts in windows that overlap."
        else:
            yield f"It reads only the {end} {self._limit} tokens of a longer row."
        if self.data.padding_matters:
            yield "Padding changes its predictions: give it one text at a time, or texts of the same length."
        if self._task.card_limit:
            yield self._task.card_limit
        yield (
            f"The test metrics come from a sample of {self._rows('test')} rows. The value on validation rows is the "
            "best of many trials and epochs, so expect a worse one on other rows."
        )
        yield "Biases in the data or in the base model are likely to show in its predictions."
        yield "The licences of the base model and of the data apply to this model as well; this card does not list them."


def _four(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _counted(count: float, what: str) -> str:
    return f"{count:,g} {what}" if count == 1 else f"{count:,g} {what}s"


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(head), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
