"""Conversations about pictures, in LLaVA's format, as tensors: questions are read, answers are learned."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

IGNORED = -100


def read(path):
    """Rows of a JSON or JSON Lines file: `conversations`, and `image` where there is one.

    Read whole and as they are: `datasets` would refuse a file in which a field, as an `id`, is a number in some rows
    and a text in others.
    """
    text = Path(path).read_text()
    rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    if not rows or "conversations" not in rows[0]:
        raise ValueError(f"{path}: no rows with `conversations`")
    return rows


@dataclass
class Collator:
    """Makes a batch: `input_ids`, `attention_mask`, `labels` [rows, tokens]; `pixel_values` [pictures, 3, H, W]."""

    processor: Any
    image_folder: str
    system_prompt: str
    max_length: int

    def __call__(self, rows):
        """Pad on the right. Labels are -100 outside of answers, and in padding."""
        pairs = [self.tokens(row) for row in rows]
        longest = max(len(ids) for ids, _ in pairs)
        pad = self.processor.tokenizer.pad_token_id
        batch = {
            "input_ids": torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in pairs]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in pairs]),
            "labels": torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in pairs]),
        }
        pictures = [self.picture(row) for row in rows if row.get("image")]
        if pictures:
            batch["pixel_values"] = self.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        return batch

    def tokens(self, row):
        """Token ids of a whole conversation, and its labels."""
        tokenizer = self.processor.tokenizer
        ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        ids += self._encode(self.system_prompt, row) if self.system_prompt else []
        labels = [IGNORED] * len(ids)
        for turn in row["conversations"]:
            if turn["from"] == "human":
                new = self._encode(f"USER: {turn['value']} ASSISTANT:", row)
                labels += [IGNORED] * len(new)
            else:
                new = [*self._encode(turn["value"], row), tokenizer.eos_token_id]
                labels += new
            ids += new
        if len(ids) > self.max_length:  # a cut within a picture would leave features without places
            if self._image_token in ids[self.max_length :]:
                raise ValueError(f"row {row.get('id')}: its picture is beyond max_length={self.max_length} tokens")
            ids, labels = ids[: self.max_length], labels[: self.max_length]
        return ids, labels

    def question(self, row):
        """A batch of one for `generate`: a row up to its first answer; and that answer."""
        answer = next(turn["value"] for turn in row["conversations"] if turn["from"] == "gpt")
        batch = self([{**row, "conversations": row["conversations"][:1]}])
        del batch["labels"]
        return batch, answer

    def picture(self, row):
        """The picture of a row, padded to a square with the mean colour, as LLaVA-1.5 does."""
        with Image.open(Path(self.image_folder, row["image"])) as image:
            image = image.convert("RGB")
        mean = tuple(round(255 * value) for value in self.processor.image_processor.image_mean)
        return ImageOps.pad(image, (max(image.size),) * 2, color=mean)

    @property
    def _image_token(self):
        return self.processor.tokenizer.convert_tokens_to_ids(self.processor.image_token)

    def _encode(self, text, row):
        """Token ids of a text, with as many places for a picture as it has features."""
        if self.processor.image_token not in text:
            return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not row.get("image"):
            raise ValueError(f"row {row.get('id')}: {self.processor.image_token} in its text, and no image")
        encoded = self.processor(text=text, images=self.picture(row), add_special_tokens=False)
        return list(encoded["input_ids"][0])
