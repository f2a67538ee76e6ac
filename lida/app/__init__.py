"""A page in the browser (`lida app`, extra `[app]`): drop a photograph, move a slider, and see the face older or younger."""
