"""A page in the browser: drop a photograph, move a slider in years, and see the face older or younger.

`lida app` starts it; it needs the extra `lida-aging[app]`. `painter` goes from an uploaded photograph to aged pictures, with the
code that infer.py uses. `page` lays out the form and shows the pictures.
"""
