"""Where the API's server listens: `gunicorn --config python:orchestrator.listening` reads `bind` from here.

The settings say it, wherever they are written, and nothing else does: what `check_exposure` has looked at is what is
bound. A host that is left out of `--bind` would be every address of the machine.
"""

from orchestrator.config import load_settings
from orchestrator.exposure import netloc

_settings = load_settings()
bind = netloc(_settings.host, _settings.port)
