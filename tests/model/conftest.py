from support.recipes import TINY, tiny_recipe

__all__ = ["TINY", "tiny_recipe"]
