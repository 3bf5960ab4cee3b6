"""What users type: one module for each command, with the function ``main(arguments)``.

`regionclip NAME` and the files in scripts/ call the same functions.
"""
