"""Things that are known by a name, ours and those of other packages: strategies, studies, kinds of potentials.

A member registers itself once, where it is defined. A package is imported when one of its members is asked for, if it
declares an entry point of the registry's group with that name, in its `pyproject.toml`:

    [project.entry-points."jaxmlip.strategies"]
    my_strategy = "my_package.my_module"

A module that no package announces is imported first: by an import in Python, by `jaxmlip --import my_module` on the
command line.
"""

import importlib
import importlib.metadata
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

Member = TypeVar("Member")

IMPORTED: list[str] = []
"""Modules that were imported for the members that they register; processes that share the work import them too."""


def import_members(modules: Iterable[str]) -> None:
    """Import modules that register members.

    Raises:
        ImportError: if there is no such module, or what it needs is missing.
    """
    for module in modules:
        importlib.import_module(module)
        if module not in IMPORTED:
            IMPORTED.append(module)


class Registry(dict[str, Member], Generic[Member]):
    """Members by name: those that have registered so far; `find` and `everything` look farther."""

    def __init__(self, what: str, group: str, own: Mapping[str, str] | None = None) -> None:
        """An empty registry.

        Args:
            what: a member, as messages call it: "strategy".
            group: of the entry points by which installed packages announce members.
            own: the modules of this package that register members, by the members' names; imported when asked for.
        """
        super().__init__()
        self.what, self.group, self._own = what, group, dict(own or {})
        self._owners: dict[str, str] = {}

    def register(self, name: str, member: Member, owner: Any) -> None:
        """Add a member; the same owner may come again, as where its module is reloaded.

        Args:
            name: of the member.
            member: what is found by it.
            owner: the class or function that it is, or `module:name` of it.

        Raises:
            ValueError: if the name is another's already.
        """
        mine = owner if isinstance(owner, str) else f"{owner.__module__}:{getattr(owner, '__qualname__', owner)}"
        there = self._owners.get(name)
        if there is not None and there != mine:
            raise ValueError(f"The {self.what} {name!r} is that of {there} already; choose another name for {mine}.")
        self._owners[name] = mine
        self[name] = member

    def copy(self) -> "Registry[Member]":
        """A registry with the same members, to which others can be added."""
        other = Registry[Member](self.what, self.group, self._own)
        other.update(self)
        other._owners = dict(self._owners)
        return other

    def find(self, name: Any) -> Member | None:
        """The member of that name, of an installed package if need be; None if there is none.

        Raises:
            ImportError: if the package that announces it cannot be imported.
        """
        if not isinstance(name, str):
            return None
        if name in self._own and name not in self:
            importlib.import_module(self._own[name])
        if name not in self:
            for point in importlib.metadata.entry_points(group=self.group, name=name):
                try:
                    point.load()  # which registers it
                except (ImportError, AttributeError) as error:
                    raise ImportError(
                        f"{name!r} is announced by the entry point {point.value}, which cannot be imported ({error})."
                    ) from error
        return self.get(name)

    def ours(self) -> dict[str, Member]:
        """Members that have registered so far, and all of this package."""
        for name in self._own:
            self.find(name)
        return {name: self[name] for name in dict.fromkeys([*self._own, *self]) if name in self}

    def names(self) -> list[str]:
        """Of all members that there are."""
        announced = {point.name for point in importlib.metadata.entry_points(group=self.group)}
        return [*dict.fromkeys([*self._own, *self, *sorted(announced)])]

    def everything(self) -> dict[str, Member]:
        """All members that there are, those of installed packages included.

        Raises:
            ImportError: if a package that announces one cannot be imported.
        """
        found = {name: self.find(name) for name in self.names()}
        return {name: member for name, member in found.items() if member is not None}
