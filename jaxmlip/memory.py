"""Whether a compiled program fits into the memory of its device, before it runs."""

from typing import Any

import jax

GIB = 2**30


class TooLarge(ValueError):
    """A program needs more memory than its device has."""


def memory_limit() -> int | None:
    """Bytes that one device of this process may use, in all; None where it does not say, as CPUs do."""
    stats = jax.local_devices()[0].memory_stats()
    return None if not stats else stats.get("bytes_limit")


def needed_bytes(compiled: Any) -> int:
    """What a compiled program needs on each device at once: arguments, results, all between; 0 if it does not say."""
    said = compiled.memory_analysis()
    if said is None:
        return 0
    whole = said.argument_size_in_bytes + said.output_size_in_bytes + said.temp_size_in_bytes
    return int(whole - said.alias_size_in_bytes)


def check_fits(jitted: Any, *arguments: Any, number: int, what: str, mend: str, **static: Any) -> None:
    """Compile a function for arguments and refuse it if it does not fit, where the device has a limit.

    The call that follows finds it compiled.

    Args:
        jitted: of `jax.jit`.
        *arguments: it will be called with, or arguments of the same shapes.
        number: of what its memory grows with.
        what: what that is, for the message, such as "replicas of 96 atoms".
        mend: what else to do, for the message.
        **static: arguments by name, of the function.

    Raises:
        TooLarge: naming how many would fit, if memory is proportional to the number.
    """
    limit = memory_limit()
    if limit is None:
        return
    needed = needed_bytes(jitted.lower(*arguments, **static).compile())
    if needed > limit:
        fits = number * limit // needed
        raise TooLarge(
            f"{number} {what} need {needed / GIB:.3g} GiB, and the device has {limit / GIB:.3g} GiB: about {fits} "
            f"would fit{'' if fits else ', which is not one'}; give fewer, or {mend}."
        )
