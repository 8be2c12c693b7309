"""Finds what the table of endpoints says about a request's path: the scope that it needs, and whose errors it has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from starlette.routing import compile_path

from edgekit.daemon.access.keys import Scope
from edgekit.daemon.http.operations import Errors, Operation

__all__ = ["RouteIndex"]


class RouteIndex:
    """The operations by path.

    An unknown path has the scope and the errors of the operation whose path begins most like it, so that what is below
    `/slots` needs what `/slots` needs; but it always needs a key.

    Args:
        operations: The table; of two paths that match, the first one counts.
    """

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._operations = tuple(operations)
        self._exact: dict[str, list[Operation]] = {}
        for one in self._operations:
            if "{" not in one.path:
                self._exact.setdefault(one.path, []).append(one)
        self._patterns = [(compile_path(one.path)[0], one) for one in self._operations if "{" in one.path]

    @property
    def paths(self) -> Sequence[str]:
        """The paths without parameters."""
        return tuple(self._exact)

    def scope(self, method: str, path: str) -> Scope | None:
        """Return the scope that a request needs; None needs no key.

        Args:
            method: The request's method.
            path: Its decoded path.
        """
        found = self._at(path)
        if not found:
            return self._nearest(path).scope or "inference"
        # The router refuses other methods; a HEAD is served as a GET.
        wanted = "GET" if method == "HEAD" else method
        return next((one.scope for one in found if one.method in (method, wanted)), found[0].scope)

    def errors(self, path: str) -> Errors:
        """Return the API whose errors a path has."""
        return (self._at(path) or [self._nearest(path)])[0].errors

    def _at(self, path: str) -> list[Operation]:
        return self._exact.get(path) or [one for pattern, one in self._patterns if pattern.match(path)]

    def _nearest(self, path: str) -> Operation:
        segments = path.split("/")[1:]

        def shared(one: Operation) -> int:
            pairs = zip(segments, one.path.split("/")[1:], strict=False)
            count = 0
            for mine, its in pairs:
                if mine != its or not mine:
                    break
                count += 1
            return count

        return max(self._operations, key=shared)
