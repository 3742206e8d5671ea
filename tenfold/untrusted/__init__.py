"""Foreign bytes: sizes are checked before anything is allocated, and nothing in them is executed.

Every reader of files is built on these functions. What is wrong with a file is a ValueError that names it.
"""

from tenfold.untrusted import values
from tenfold.untrusted.pickled import Scan, checked_pickle
from tenfold.untrusted.tensors import check_tensor
from tenfold.untrusted.text import parse_json, read_text
from tenfold.untrusted.torch_file import load_torch

__all__ = ["Scan", "check_tensor", "checked_pickle", "load_torch", "parse_json", "read_text", "values"]
