"""The doors: errors, files, JSON, arguments, pictures and tensors.

Each kind of input has one door. What has passed through it is sound, and nobody checks it again.
"""
