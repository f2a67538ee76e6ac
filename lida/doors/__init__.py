"""The doors: errors, files, JSON, arguments, pictures and tensors.

Each kind of input has one door. Values that passed it are valid; no other code checks them again.
"""
