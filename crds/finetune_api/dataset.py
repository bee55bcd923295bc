"""What a study says about its pretrained model and its rows."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from finetune_api.locations import Location
from finetune_api.schema import Model, Name, Rule
from finetune_api.spaces import (
    ATOMIC,
)


class PretrainedModel(Model):
    """The pretrained encoder every trial starts from. Remote code is never run."""

    name: Location
    """Hugging Face hub id, the path of a model in a mounted volume, or its folder in an object store
    (`s3://bucket/models/minilm`), which is read with the credentials of the storage."""

    revision: str | None = Field(None, min_length=1, max_length=64)
    """Commit, tag or branch on the hub. Default: its main branch."""


class HubDataset(Model):
    """A data set of the Hugging Face hub."""

    path: Name
    """Data set id, for example `org/tickets`."""

    name: Name | None = None
    """Configuration of the data set, where it has several."""

    revision: str | None = Field(None, min_length=1, max_length=64)
    """Commit, tag or branch. Default: the main branch."""


class DatasetFiles(Model):
    """CSV, TSV, JSON (one object per line, or an array of objects), Parquet or (TokenClassification) CoNLL files,
    recognised by suffix and optionally compressed (.gz); local paths or URIs that `pyarrow.fs` opens."""

    train: Location
    """Training rows."""

    validation: Location | None = None
    """Validation rows. Default: split off the training rows."""

    test: Location | None = None
    """Held-out test rows. Default: split off the training rows."""

    encoding: str | None = Field(None, min_length=1, max_length=32)
    """Encoding of texts, such as UTF-16, ISO-8859-1 or GB18030. Default: UTF-8."""

    delimiter: str | None = Field(None, min_length=1, max_length=1)
    """CSV and TSV: the character between fields. Default: a comma, or a tab for .tsv."""

    column_names: list[Name] | None = Field(
        None, min_length=1, max_length=256, json_schema_extra=ATOMIC
    )
    """CSV and TSV without a header row: the names of their columns, in order. CoNLL: the names of the fields of a line;
    default: `tokens` for the first and `tags` for the last."""

    max_unreadable: float | None = Field(None, ge=0, le=1)
    """Share of the rows of a file that may be left out because they cannot be read. Default 0.01."""


class Split(Model):
    """How rows are set aside where the source has no split of its own."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.validation + self.test < 1.0",
            message="validation and test must leave rows for training (their sum must be below 1)",
            holds=lambda self: self.validation + self.test < 1,
        ),
    )

    validation: float = Field(0.1, gt=0, lt=1)
    """Share of rows for validation."""

    test: float = Field(0.1, gt=0, lt=1)
    """Share of rows for the held-out test set."""

    stratify: bool = True
    """Keep the share of each class equal in every split. Ignored for Regression."""

    seed: int = Field(0, ge=0, le=4294967295)
    """Seed of the split."""


class Cleaning(Model):
    """How texts are cleaned, in this order and before anything else, and which rows are left out.
    `results/data.json` counts what each step did."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.minCharacters) || !has(self.maxCharacters) || self.minCharacters <= self.maxCharacters",
            message="minCharacters must be at most maxCharacters",
            holds=lambda self: (
                self.min_characters is None
                or self.max_characters is None
                or self.min_characters <= self.max_characters
            ),
            field=".minCharacters",
        ),
    )

    strip_html: bool = False
    """Replace HTML by the text that it shows; scripts and styles show none."""

    normalize_unicode: bool = False
    """Apply Unicode normalisation form NFKC, so that each character is written in one way."""

    normalize_whitespace: bool = False
    """Replace each run of white space by one space, and remove it at both ends."""

    lowercase: bool = False
    """Convert texts to lower case. Uncased models do this by themselves."""

    min_characters: int | None = Field(None, ge=1, le=1000000)
    """Leave out rows with a shorter text."""

    max_characters: int | None = Field(None, ge=1, le=1000000)
    """Leave out rows with a longer text."""

    duplicates: Literal["Keep", "Drop"] = "Keep"
    """Drop rows with the same texts and label as an earlier row of their split. Also drop training rows with the
    same texts as a validation or test row, and validation rows with the same texts as a test row: they would leak."""

    conflicts: Literal["Keep", "Report", "Drop"] = "Report"
    """Training rows (with cross-validation also validation rows) with the same texts but different labels:
    keep them silently, keep them and warn, or leave all of them out."""

    duplicate_encoder: PretrainedModel | None = None
    """The sentence encoder (mean of the last hidden states) that `duplicateThreshold` compares by.
    Default: the study's model."""


_LABELS = ("label_column", "label_columns", "tags_column", "spans_column")


def _given(dataset: Any, names: Sequence[str]) -> list[str]:
    """Which of the fields are given."""
    return [name for name in names if getattr(dataset, name) is not None]


class Dataset(Model):
    """The labelled rows."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.hub) != has(self.files)",
            message="must have exactly one of hub and files",
            holds=lambda self: (self.hub is None) != (self.files is None),
        ),
        Rule(
            cel="has(self.textColumns) != has(self.tokensColumn)",
            message="must be given, such as textColumns: [text], unless there is a tokensColumn",
            holds=lambda self: (self.text_columns is None) != (self.tokens_column is None),
            field=".textColumns",
        ),
        Rule(
            cel="!has(self.textColumns) || self.textColumns.all(c, self.textColumns.exists_one(d, d == c))",
            message="textColumns must be unique",
            holds=lambda self: len({*self.texts}) == len(self.texts),
            field=".textColumns",
        ),
        Rule(
            cel="!has(self.textColumns) || self.textColumns.size() <= 2 || self.joinTextColumns",
            message="more than two textColumns must go with joinTextColumns",
            holds=lambda self: len(self.texts) <= 2 or self.join_text_columns,
            field=".textColumns",
        ),
        Rule(
            cel="[has(self.labelColumn), has(self.labelColumns), has(self.tagsColumn), has(self.spansColumn)]"
            ".filter(h, h).size() == 1",
            message="must have exactly one of labelColumn and labelColumns, or of tagsColumn and spansColumn with task "
            "TokenClassification",
            holds=lambda self: len(_given(self, _LABELS)) == 1,
        ),
        Rule(
            cel="has(self.tokensColumn) == has(self.tagsColumn)",
            message="tokensColumn must go with tagsColumn, which has a tag for each of its words",
            holds=lambda self: (self.tokens_column is None) == (self.tags_column is None),
            field=".tokensColumn",
        ),
        Rule(
            cel="!has(self.tokensColumn) || !has(self.tagsColumn) || self.tokensColumn != self.tagsColumn",
            message="tagsColumn must not be tokensColumn: words are not their own tags",
            holds=lambda self: self.tokens_column is None or self.tokens_column != self.tags_column,
            field=".tagsColumn",
        ),
        Rule(
            cel="!has(self.spansColumn) || !has(self.textColumns) || (self.textColumns.size() == 1"
            " && !(self.spansColumn in self.textColumns))",
            message="spansColumn must go with one of textColumns, in which its spans are, and be another column",
            holds=lambda self: (
                self.spans_column is None
                or not self.texts
                or (len(self.texts) == 1 and self.spans_column not in self.texts)
            ),
            field=".spansColumn",
        ),
        Rule(
            cel="!(has(self.spansColumn) || has(self.tokensColumn)) || !self.joinTextColumns",
            message="joinTextColumns must be false with tokensColumn and with spansColumn",
            holds=lambda self: (
                not self.join_text_columns or not _given(self, ("tokens_column", "spans_column"))
            ),
            field=".joinTextColumns",
        ),
        Rule(
            cel="!has(self.spansColumn) || !(self.cleaning.stripHtml || self.cleaning.normalizeUnicode"
            " || self.cleaning.normalizeWhitespace)",
            message="with spansColumn stripHtml, normalizeUnicode and normalizeWhitespace must be false: they would move "
            "the text, and not its spans",
            holds=lambda self: (
                self.spans_column is None
                or not (
                    self.cleaning.strip_html
                    or self.cleaning.normalize_unicode
                    or self.cleaning.normalize_whitespace
                )
            ),
            field=".cleaning",
        ),
        Rule(
            cel="!has(self.labelColumns) || self.labelColumns.all(c, self.labelColumns.exists_one(d, d == c))",
            message="labelColumns must be unique",
            holds=lambda self: (
                self.label_columns is None
                or len(set(self.label_columns)) == len(self.label_columns)
            ),
            field=".labelColumns",
        ),
        Rule(
            cel="!has(self.labelColumn) || !has(self.textColumns) || !(self.labelColumn in self.textColumns)",
            message="labelColumn must not be one of textColumns: a text cannot be its own label",
            holds=lambda self: self.label_column not in self.texts,
            field=".labelColumn",
        ),
        Rule(
            cel="!has(self.labelNames) || !has(self.labelNamesFile)",
            message="must have at most one of labelNames and labelNamesFile",
            holds=lambda self: self.label_names is None or self.label_names_file is None,
            field=".labelNames",
        ),
        Rule(
            cel="!(has(self.labelColumns) || has(self.spansColumn))"
            " || !(has(self.labelNames) || has(self.labelNamesFile))",
            message="labelNames must go with labelColumn or tagsColumn",
            holds=lambda self: (
                not _given(self, ("label_columns", "spans_column"))
                or not _given(self, ("label_names", "label_names_file"))
            ),
            field=".labelNames",
        ),
        Rule(
            cel="!has(self.labelColumns) || !has(self.labelSeparator)",
            message="labelSeparator must go with labelColumn",
            holds=lambda self: self.label_columns is None or self.label_separator is None,
            field=".labelSeparator",
        ),
    )

    hub: HubDataset | None = None
    files: DatasetFiles | None = None
    text_columns: list[Name] | None = Field(
        None, min_length=1, max_length=8, json_schema_extra=ATOMIC
    )
    """The column of texts, two columns of sentence pairs, or, with joinTextColumns, several columns. All tasks need it but
    TokenClassification with tokensColumn."""

    join_text_columns: bool = False
    """Join the columns of a row into one text, with the model's separator between them."""

    label_column: Name | None = None
    """The column of labels: a class, a list of labels (MultiLabel) or a number (Regression)."""

    label_columns: list[Name] | None = Field(
        None, min_length=2, max_length=64, json_schema_extra=ATOMIC
    )
    """MultiLabel: one column per label, each holding yes or no (1, true, yes; 0, false, no, empty)."""

    label_separator: str | None = Field(None, min_length=1, max_length=8)
    """MultiLabel: what separates labels where the column holds text instead of lists."""

    tokens_column: Name | None = None
    """TokenClassification: the column of words, a list for each row."""

    tags_column: Name | None = None
    """TokenClassification: the column with a tag for each word of tokensColumn: IOB2, IOB1, BIOES or BILOU tags, which say
    where an entity begins; or plain ones, of which O means none and equal neighbours are one entity. If no word has O,
    each word is an entity by itself, as in part-of-speech tagging."""

    spans_column: Name | None = None
    """TokenClassification: the column of entities in the text of textColumns, a list of objects with `start`, `end` and
    `label` for each row; positions count characters from 0, the one at `end` is not part of it."""

    label_names: list[Name] | None = Field(
        None, min_length=1, max_length=1024, json_schema_extra=ATOMIC
    )
    """What the labels are called where the column has their numbers: the name of 0, of 1 and so on."""

    label_names_file: Location | None = None
    """The same, as a text file with one name per line."""

    group_column: Name | None = None
    """Rows with the same value in this column stay together in one split and in one fold; a row without a
    value is a group of its own."""

    cleaning: Cleaning = Cleaning()

    synonyms: Location | None = None
    """A file for `augmentation`. Each line is a word, a tab, and synonyms separated by commas. Default: WordNet."""

    allow_label_in_text: bool = False
    """Accept data in which most rows contain their own label word for word. That is a leak, unless it is the task."""

    split: Split = Split()

    @property
    def texts(self) -> list[str]:
        """The columns of texts; none where words are given."""
        return self.text_columns or []

    @property
    def read(self) -> list[str]:
        """The columns that the model reads."""
        return self.texts or [str(self.tokens_column)]

    @property
    def labels(self) -> list[str]:
        """The columns that say what is right."""
        one = self.label_column or self.tags_column or self.spans_column
        return self.label_columns or [str(one)]
