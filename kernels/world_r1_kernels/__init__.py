"""One operator a folder: reference.py is the specification, triton.py the fast version."""
