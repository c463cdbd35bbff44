"""Plugins as another process would find them, shared by their tests."""

from diffax import plugins, registry


def afresh():
    """As in another process."""
    for plugin in plugins._LOADED.values():
        registry.forget(plugin.registers)
    plugins._LOADED.clear()
