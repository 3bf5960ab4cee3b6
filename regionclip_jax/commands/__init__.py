"""Commands of the project: one module for each, with the function ``main(arguments)``.

`regionclip NAME` and the files in scripts/ call the same functions.
"""
