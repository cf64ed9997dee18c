"""What the page computes: plain functions over a model and plugins, which know nothing of a browser.

Every function that takes long is given `progress`, called with the share that is done and what comes next, and `stop`,
an event that somebody may set: `Stopped` is raised then, with the model as it was before.
"""
