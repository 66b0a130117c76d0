"""Rules between settings, told by the name of the setting, the rule and the value."""

from natjax.train.errors import UserError


def require(name: str, value: object, holds: bool, rule: str) -> None:
    """Check one setting.

    Args:
      name: As on the command line, such as ``"data.crop_pct"``.
      value: What it is.
      holds: Whether that is right.
      rule: What it must be, in words.

    Raises:
      UserError: the rule does not hold.
    """
    if not holds:
        raise UserError(f"{name} must be {rule}, got {value}")


def require_multiple(name: str, value: int, of: str, divisor: int) -> None:
    """Check that a setting is a multiple of another, which `of` names.

    Raises:
      UserError: it is not.
    """
    require(name, value, value % divisor == 0, f"a multiple of {of}={divisor}")
