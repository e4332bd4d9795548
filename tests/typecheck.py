"""Whether annotations are true: what each function of a test session took and returned, held against its signature.

The packages that `--jaxtyping-packages` names in pyproject.toml are imported through jaxtyping, which hands `checked`
two empty twins of every function: one to call before it, one to call after it with its result too. Only the second is
checked. So what a function refuses needs no annotation, and its ValueError or TypeError reaches the test that asks for
it; what it takes or returns and does not declare is a false annotation.
"""

from functools import lru_cache, wraps
from inspect import Parameter, signature
from typing import Any, get_type_hints

from beartype import BeartypeConf, beartype
from beartype.door import die_if_unbearable
from beartype.roar import BeartypeCallHintViolation, BeartypeDoorHintViolation
from jaxtyping import jaxtyped

_AS_IN_PEP_484 = BeartypeConf(is_pep484_tower=True)  # an int is a float
_hints = lru_cache(get_type_hints)


class FalseAnnotation(BaseException):
    """Not an Exception, that neither an `except` in the code nor `pytest.raises(TypeError)` may swallow it."""


def checked(twin):
    """Hold a call and its result, the last argument by keyword, against the signature; nothing before the call."""
    by_keyword = [name for name, p in signature(twin).parameters.items() if p.kind is Parameter.KEYWORD_ONLY]
    if not by_keyword or not by_keyword[-1].startswith("ret"):
        return twin
    held = beartype(twin, conf=_AS_IN_PEP_484)
    is_any = signature(twin).return_annotation is Any  # such as the records of many members, stacked into one

    @wraps(held)
    def check(*args, **kwargs):
        try:
            result = held(*args, **kwargs)
            if not is_any and isinstance(result, tuple) and _package(type(result)) == _package(twin):
                _hold_fields(result)
        except (BeartypeCallHintViolation, BeartypeDoorHintViolation) as violation:
            raise FalseAnnotation(f"{twin.__module__}.{twin.__qualname__}: {violation}") from None

    return check


def _package(definition):
    return definition.__module__.partition(".")[0]


def _hold_fields(record):
    """Hold a NamedTuple's fields against their hints; their axes are named apart from those of the function."""
    with jaxtyped("context"):
        for name, hint in _hints(type(record)).items():
            die_if_unbearable(getattr(record, name), hint, conf=_AS_IN_PEP_484)
