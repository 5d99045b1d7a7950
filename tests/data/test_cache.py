"""Guards against half-written results being taken for whole ones."""

from pathlib import Path

import pytest

from gradscale.data.cache import cache_root, cached_folder


def test_a_failed_build_leaves_nothing(tmp_path):
    def build(folder):
        (folder / "half").write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        cached_folder("kind", "a" * 64, build, root=tmp_path)
    assert list((tmp_path / "kind").iterdir()) == []


def test_the_first_of_two_builders_wins(tmp_path):
    def slow(folder):
        (folder / "who").write_text("slow")
        fast = cached_folder("kind", "a" * 64, lambda inner: (inner / "who").write_text("fast"), root=tmp_path)
        assert (fast / "who").read_text() == "fast"

    assert (cached_folder("kind", "a" * 64, slow, root=tmp_path) / "who").read_text() == "fast"
    assert len(list((tmp_path / "kind").iterdir())) == 1


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "gradscale"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_root() == Path.home() / ".cache" / "gradscale"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "gradscale"
