"""What must hold of a radix tree at any moment, by its own books (INV-4 to INV-6)."""

from quartet.wire.errors import InvariantViolation
from scheduler_proc.core.radix_node import Node, below


def audit_nodes(root: Node, page_size: int, protected_tokens: int) -> list[Node]:
    """Raise InvariantViolation where counters or links disagree with a walk; return the unlocked nodes."""
    protected, unlocked = 0, list[Node]()
    for node in below(root):
        parent = node.parent
        if node.lock_ref:
            protected += len(node.pages) * page_size
        else:
            unlocked.append(node)
        if parent is None or parent.children.get(node.child_key) is not node:
            raise InvariantViolation("INV-5", "a child is filed under another key, or knows another parent")
        if node.lock_ref < sum(child.lock_ref for child in node.children.values()):
            raise InvariantViolation("INV-6", "a node has fewer locks than its children")
        if parent is not root and (parent.urgency > node.urgency or parent.last_access < node.last_access):
            raise InvariantViolation("INV-4", "urgency or access time improves on the way down")
    if protected != protected_tokens:
        raise InvariantViolation("INV-4", f"{protected_tokens} protected tokens, a walk finds {protected}")
    return unlocked
