from tests.training.conftest import private_cache, settings, workplace, write

__all__ = ["private_cache", "settings", "workplace", "write"]
