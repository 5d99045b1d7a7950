"""Guards against validation text in training: by files that repeat each other, and by a split that changes."""

import pytest

from gradscale.data.docstrings_corpus import PACKAGES, DocstringsCorpus, installed
from gradscale.data.source import DataError
from gradscale.training.arguments import TrainArguments
from gradscale.training.datasets import open_source
from gradscale.training.errors import ConfigError

SHARED = "This paragraph stands in every module of the library, because all of them were made from one template. " * 2


def make_package(root, count=80):
    for index in range(count):
        folder = root / f"part{index % 5}"
        folder.mkdir(exist_ok=True)
        own = f"Module {index} computes what no other module of this package computes, and says so at length. " * 3
        (folder / f"module{index}.py").write_text(
            f'"""{own}\n\n{SHARED}\n"""\n\ndef f():\n    """Too short to be text."""\n\n\n'
            f'class A:\n    def g(self):\n        """A method of {index}.\n\n        {own[::-1]}\n        """\n'
        )
    (root / "broken.py").write_text("def {")
    return root


@pytest.fixture
def corpus(tmp_path):
    return DocstringsCorpus({"library": make_package(tmp_path)})


def test_documents_are_the_docstrings_of_a_file_without_their_indentation(corpus):
    (document,) = [text for text in corpus.documents("train") if "A method of 11." in text]
    first, *others = document.split("\n\n")
    assert first.startswith("Module 11 computes") and not any(text.startswith(" ") for text in others)
    assert "Too short" not in document


def test_no_paragraph_stands_in_both_splits_or_twice(corpus):
    train, validation = (
        [paragraph for text in corpus.documents(split) for paragraph in text.split("\n\n")]
        for split in ("train", "validation")
    )
    assert train and validation and not set(train) & set(validation)
    assert len(set(train)) == len(train)
    assert (train + validation).count(SHARED.rstrip()) == 1


def test_the_side_of_a_file_does_not_depend_on_other_files(corpus, tmp_path):
    before = corpus.fingerprint
    held_out = [text.split(" computes")[0] for text in corpus.documents("validation")]
    for path in sorted(tmp_path.glob("part1/*.py")):
        path.unlink()
    after = DocstringsCorpus({"library": tmp_path})
    assert {text.split(" computes")[0] for text in after.documents("validation")} <= set(held_out)
    assert after.fingerprint != before


def test_the_installed_libraries_are_found_without_importing_them():
    assert set(installed()) == set(PACKAGES)
    corpus = open_source(TrainArguments(model_config="llama-1m", corpus="docstrings"))
    assert isinstance(corpus, DocstringsCorpus) and corpus.fingerprint == DocstringsCorpus().fingerprint
    assert "docstrings of torch, transformers, numpy" in corpus.description


def test_a_machine_without_their_sources_is_told(tmp_path):
    with pytest.raises(DataError, match="the corpus 'docstrings' needs the sources of torch, transformers, numpy"):
        DocstringsCorpus({"empty": tmp_path})


def test_an_unknown_corpus_is_refused():
    with pytest.raises(ConfigError, match="corpus='docs' is not allowed: expected one of 'stdlib', 'docstrings'"):
        TrainArguments(model_config="llama-1m", corpus="docs")
