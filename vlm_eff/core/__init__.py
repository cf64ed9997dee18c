"""What every room shares: plugins, handles, registry, resources, reports, configuration, errors.

Nothing here knows a model. Start reading at `plugin.py`.
"""
