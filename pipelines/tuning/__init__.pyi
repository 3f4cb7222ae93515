from .driver import sweep as sweep
from .space import check_space as check_space
from .space import format_changes as format_changes
