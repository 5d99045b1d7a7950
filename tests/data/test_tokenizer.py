"""Guards against validation text shaping the vocabulary, and against concurrent runs breaking the cache."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from transformers import AutoTokenizer

from gradscale.data.source import DataError
from gradscale.data.tokenizer import END_OF_TEXT, trained_tokenizer


def test_trained_on_training_documents_only(tmp_path, documents, list_source):
    source = list_source(documents, ["zyxwvut " * 500])
    folder = trained_tokenizer(source, 350, root=tmp_path)
    assert source.reads == ["train"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == 350
    assert tokenizer.eos_token == END_OF_TEXT
    assert len(tokenizer("gradient")["input_ids"]) < len("gradient")
    assert len(tokenizer("zyxwvut")["input_ids"]) == len("zyxwvut")  # never seen: bytes
    text = "def f():\n\treturn 'naïve 中文 🙂'\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_cached_by_content_and_vocabulary(tmp_path, documents, list_source):
    source = list_source(documents)
    folder = trained_tokenizer(source, 300, root=tmp_path)
    assert trained_tokenizer(source, 300, root=tmp_path) == folder
    assert source.reads == ["train"]  # the second time nothing was read
    assert trained_tokenizer(source, 301, root=tmp_path) != folder
    assert trained_tokenizer(list_source(documents[1:]), 300, root=tmp_path) != folder


def test_concurrent_threads_get_one_result(tmp_path, documents, list_source):
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: trained_tokenizer(list_source(documents), 300, root=tmp_path), range(4)))
    assert len(set(folders)) == 1
    assert [path.name for path in (tmp_path / "tokenizers").iterdir()] == [folders[0].name]
    assert len(AutoTokenizer.from_pretrained(folders[0])) == 300


def test_concurrent_processes_get_one_result(tmp_path):
    code = (
        "import sys, pathlib; from gradscale.data.local_files import LocalFiles\n"
        "from gradscale.data.tokenizer import trained_tokenizer\n"
        "print(trained_tokenizer(LocalFiles([sys.argv[1]]), 300, root=pathlib.Path(sys.argv[2])))"
    )
    (tmp_path / "a.txt").write_text("some text to train on, some more text\n" * 200)
    command = [sys.executable, "-c", code, str(tmp_path / "a.txt"), str(tmp_path / "cache")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1]
    assert len(list((tmp_path / "cache" / "tokenizers").iterdir())) == 1


def test_a_vocabulary_smaller_than_the_bytes(tmp_path, list_source):
    with pytest.raises(DataError, match="vocab_size=256 is not allowed: expected an integer of at least 257"):
        trained_tokenizer(list_source(["text"]), 256, root=tmp_path)
