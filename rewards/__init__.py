"""The rules behind verify.py, a file a kind of answer: where an answer stands, LaTeX, IFEval,
programs.
"""
