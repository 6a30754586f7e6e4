"""Reading a file with a clear message."""

from pathlib import Path
from typing import Any

import orjson

from calm_megatron.config.errors import UserError


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: when it is no valid JSON.
    """
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        again = "make it again with the tool that wrote it"
        raise UserError(f"this file is not valid JSON: {error}", str(path), again) from error
