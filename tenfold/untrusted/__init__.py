"""Foreign bytes: sizes are checked before anything is allocated, and nothing in them is executed.

Every reader of files is built on these modules. What is wrong with a file is a ValueError that names it.
"""
