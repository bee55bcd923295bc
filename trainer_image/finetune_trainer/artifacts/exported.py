"""The final model as its users get it: read back from its folder, and asked as it was trained."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import AutoTokenizer

from finetune_trainer.data.model_source import ModelSource, quiet_transformers
from finetune_trainer.data.reads import check_reads
from finetune_trainer.data.tokens import Frame, Tokens, cut, tokenise, tokens_of_words
from finetune_trainer.data.windows import windows_of
from finetune_trainer.tasks import auto_class_of
from finetune_trainer.tasks.ragged import Ragged
from finetune_trainer.training.batches import Rows, evaluation_batches
from finetune_trainer.training.pooling import is_pooled, load_classifier

BATCH = 64
"""Rows, or windows of words, that go through a model together unless somebody says otherwise."""

_SHORT, _LONG = "one", "one and another and more of them"
"""What a model reads to find out whether padding matters."""


def load_exported(folder: Path) -> Any:
    """The model that a trial has written to `folder`, on the CPU in float32, ready to predict.

    Call it with token ids and their mask; it returns `logits`: of rows, or of each token of a model that tags words. No code in `folder` is run.
    """
    with quiet_transformers():
        if is_pooled(folder):
            return load_classifier(folder)
        names = transformers.AutoConfig.from_pretrained(folder).architectures or []
        auto = getattr(transformers, auto_class_of(names))
        model = auto.from_pretrained(folder, dtype="float32")
    return model.eval()


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer. It reads rows as in training: what is longer than that is cut, or read in windows."""

    model: Any
    tokenizer: Any
    device: str = "cpu"
    folder: str = ""
    """Where it came from, for errors."""

    @classmethod
    def of(cls, folder: Path, device: str = "cpu") -> "LoadedModel":
        """The model that a trial has written to `folder`, on `device`."""
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder)
        return cls(load_exported(folder).to(device), tokenizer, device, str(folder))

    @property
    def limit(self) -> int:
        """How many tokens it reads at a time, including special tokens."""
        return int(self.tokenizer.model_max_length)

    def logits(
        self, columns: Sequence[Sequence[str]], batch_size: int = BATCH
    ) -> NDArray[np.float32]:
        """What it says of rows of one or two texts, (rows, outputs). Rows of similar length are batched together."""
        frame = self.frame(len(columns))
        tokens = [tokenise(self.tokenizer, texts) for texts in columns]
        every = np.arange(len(columns[0]), dtype=np.int64)
        kept = cut([column.lengths for column in tokens], self.limit - frame.special)
        found = np.empty((len(every), self._outputs), dtype=np.float32)
        for rows in self._batches(every, np.sum(kept, axis=0), batch_size):
            inputs = self.inputs(tokens, rows, frame)
            with torch.inference_mode():
                found[rows] = self.model(**inputs).logits.float().cpu().numpy()
        return found

    def word_logits(self, texts: Sequence[str], words: Ragged, batch_size: int = BATCH) -> Ragged:
        """What it says of each word of texts, (words, outputs); NaN for one without a token.

        `words` has the first character of each word and the one after its last, (words, 2).
        """
        values = np.full((len(words.values), self._outputs), np.nan, dtype=np.float32)
        frame = self.frame(1)
        tokens, first = tokens_of_words(self.tokenizer, texts, words)
        windows = windows_of(tokens, first, self.limit - frame.special)
        every = np.arange(len(windows.row), dtype=np.int64)
        every = every[windows.word_tokens.lengths > 0]
        lengths = windows.tokens.lengths[every]
        known = np.empty((len(windows.known), self._outputs), dtype=np.float32)
        for rows in self._batches(every, lengths, batch_size):
            inputs = self.inputs([windows.tokens], rows, frame)
            with torch.inference_mode():
                logits = self.model(**inputs).logits.float().cpu().numpy()
            labelled = windows.word_tokens[rows]
            places = windows.word_tokens.items(rows)
            known[places] = logits[labelled.rows, len(frame.before) + labelled.values]
        values[windows.known] = known
        return words.with_values(values)

    def cut_off(self, columns: Sequence[Sequence[str]]) -> int:
        """How many rows it does not read to their end at once."""
        # A token has at least one character: most rows need no second look.
        rows = [row for row in zip(*columns, strict=True) if sum(map(len, row)) >= self.limit - 3]
        lengths = sum(tokenise(self.tokenizer, texts).lengths for texts in zip(*rows, strict=True))
        return int(np.sum(lengths + self.frame(len(columns)).special > self.limit)) if rows else 0

    def inputs(
        self, columns: Sequence[Tokens], rows: Rows, frame: Frame
    ) -> dict[str, torch.Tensor]:
        """The model's arguments for `rows` of tokens, each cut to what it reads."""
        kept = cut([column.lengths[rows] for column in columns], self.limit - frame.special)
        arrays, _ = frame.padded(columns, rows, kept, self.limit)
        return {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}

    def frame(self, columns: int) -> Frame:
        """What surrounds rows of so many texts."""
        return Frame.of(self.tokenizer, [[_SHORT]] * columns)

    @property
    def _outputs(self) -> int:
        return len(self.model.config.id2label)

    def _batches(self, rows: Rows, lengths: NDArray[np.int64], batch_size: int) -> Iterator[Rows]:
        """`rows` in batches: of similar lengths or, where padding changes what the model says, of the same."""
        parts = [lengths == length for length in np.unique(lengths)]
        for part in parts if self.padding_matters else [np.ones(len(rows), dtype=np.bool_)]:
            yield from evaluation_batches(rows[part], lengths[part], batch_size)

    @cached_property
    def padding_matters(self) -> bool:
        """Whether padding changes what it says of a row."""
        source, frame = ModelSource(self.folder), self.frame(1)
        texts = (tokenise(self.tokenizer, [_LONG, _SHORT]),)
        model = self.model.to("cpu")
        try:
            return check_reads(model, source, texts, frame, self.limit)
        finally:
            self.model.to(self.device)
