"""Whole subtrees of the cache together: dfs-weight as SGLang has it, and as the tutorial on it describes (4.4)."""

import collections

from scheduler_proc.core.policies.context import PolicyContext
from scheduler_proc.core.radix import Node
from scheduler_proc.core.request import Request


def order_by_subtree(requests: list[Request], context: PolicyContext) -> None:
    """dfs-weight: the most wanted subtree first, a node's own requests after all those below it.

    A node's weight is the number of requests that match to somewhere in its subtree; ties keep the order in which the
    children were inserted. Only nodes above a match are visited, however large the tree is.
    """
    tree = context.tree
    assert tree is not None
    own = collections.defaultdict(list)
    for request in requests:
        own[request.matched_node or tree.root].append(request)
    children = _children_by_weight({node: len(here) for node, here in own.items()})
    ordered: list[Request] = []
    stack = [(tree.root, False)]
    while stack:
        node, is_below_done = stack.pop()
        if is_below_done:
            ordered += own.get(node, ())
        else:
            stack.append((node, True))
            stack += [(child, False) for child in reversed(children.get(node, ()))]
    requests[:] = ordered


def _children_by_weight(matches: dict[Node, int]) -> dict[Node, list[Node]]:
    """Return, for each node above a match, the children that lead to one, heaviest first, then oldest."""
    weights: collections.Counter[Node] = collections.Counter()
    for node, count in matches.items():
        above: Node | None = node
        while above is not None:
            weights[above] += count
            above = above.parent
    children: dict[Node, list[Node]] = {}
    for node in weights:
        if node.parent is not None:
            children.setdefault(node.parent, []).append(node)
    for siblings in children.values():
        # Creation is inherited in splits, so among siblings it is the order of insertion into the parent.
        siblings.sort(key=lambda node: (-weights[node], node.creation))
    return children


def order_by_depth(requests: list[Request], context: PolicyContext) -> None:
    """dfs-weight-tutorial: the largest depth * weight first.

    Depth counts nodes from the root to where the request's match ends, weight is the request's parameter. Unlike
    dfs-weight it ranks single requests and does not keep a subtree together.
    """
    requests.sort(key=lambda request: -_depth(request) * request.weight)


def _depth(request: Request) -> int:
    node, depth = request.matched_node, 0
    while node is not None and node.parent is not None:
        node, depth = node.parent, depth + 1
    return depth
